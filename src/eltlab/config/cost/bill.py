"""The bill of a configuration: its sizes, FLOPs and bytes, under the names that plan prints and rows use."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from eltlab.config.cost import flops
from eltlab.config.cost.memory import inference_memory, training_memory
from eltlab.config.depths import DepthDistribution
from eltlab.config.network import Network, network
from eltlab.config.schedules import LoopSchedule
from eltlab.config.schema import Config


def bill(config: Config, device: str, precision: str) -> dict[str, Any]:
    """Sizes and costs of a resolved configuration: of the whole run, and of one sample at its loops.

    device (cpu | cuda) and precision (32-true | bf16-mixed) affect the memory only.
    """
    loops: LoopSchedule = config.loops if config.sampler.loops is None else config.sampler.loops
    depths = flops.requested_depths(loops, config.sampler.steps)
    return {
        "loops": config.loops,
        **model_bill(config, device, precision),
        **sampling_bill(config, depths),
        "images": config.images,
        "train_flops_total": int_if_whole(flops.budget_flops(config)),
    }


def model_bill(config: Config, device: str, precision: str) -> dict[str, Any]:
    """What depends neither on the loops of a sample nor on the length of training."""
    net = network(config)
    return {
        "unique_layers": config.unique_layers,
        "depth": config.model.depth,
        "width": net.width,
        "tokens": net.tokens,
        "params_total": flops.params_total(net),
        "params_blocks": flops.params_blocks(net),
        "params_embedding": flops.params_embedding(net),
        "params_head": flops.params_head(net),
        "train_flops_per_image": int_if_whole(flops.train_flops(config)),
        "memory_training_bytes": training_memory(config, device, precision).total,
        "memory_inference_bytes": inference_memory(config, device, precision).total,
    }


def sampling_bill(config: Config, depths: Sequence[DepthDistribution]) -> dict[str, Any]:
    """NFE, and the MACs of a sample and of its mean pass, if the sampling steps run these depths."""
    net = network(config)
    nfe = sum(flops.evaluations_per_step(config))

    def total(macs_of_pass: Callable[[Network, int], int]) -> float:
        return flops.cost_per_sample(config, depths, partial(macs_of_pass, net))

    macs, trunk = total(flops.macs_per_pass), total(flops.macs_trunk)
    return {
        "macs_per_pass": int_if_whole(macs / nfe),
        "macs_per_pass_trunk": int_if_whole(trunk / nfe),
        "macs_per_pass_attention": int_if_whole(total(flops.macs_attention) / nfe),
        "nfe": nfe,
        "macs_per_sample": int_if_whole(macs),
        "macs_per_sample_trunk": int_if_whole(trunk),
        "flops_per_sample": int_if_whole(2 * macs),
    }


def int_if_whole(value: float) -> float:
    """A whole number as an int: rows say 4 loops, not 4.0."""
    return int(value) if value == int(value) else value
