"""The bill of a configuration: everything that `compute.py` and `memory.py` know of it, under the names
that plan prints and rows carry."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from eltlab.config.cost.flops import (
    budget_flops,
    cost_per_sample,
    evaluations_per_step,
    macs_attention,
    macs_per_pass,
    macs_trunk,
    params_blocks,
    params_embedding,
    params_head,
    params_total,
    requested_depths,
    train_flops,
)
from eltlab.config.cost.memory import inference_memory, training_memory
from eltlab.config.depths import DepthDistribution
from eltlab.config.network import Network, network
from eltlab.config.schedules import LoopSchedule
from eltlab.config.schema import Config


def bill(config: Config, device: str, precision: str) -> dict[str, Any]:
    """Sizes and costs of a resolved configuration; of a whole run and of one sample at its loops.

    device (cpu | cuda) and precision (32-true | bf16-mixed) decide the memory alone.
    """
    loops: LoopSchedule = config.loops if config.sampler.loops is None else config.sampler.loops
    spent = requested_depths(loops, config.sampler.steps)
    return {
        "loops": config.loops,
        **model_bill(config, device, precision),
        **sampling_bill(config, spent),
        "images": config.images,
        "train_flops_total": int_if_whole(budget_flops(config)),
    }


def model_bill(config: Config, device: str, precision: str) -> dict[str, Any]:
    """What does not depend on the loops of a sample or the length of training."""
    net = network(config)
    return {
        "unique_layers": config.unique_layers,
        "depth": config.model.depth,
        "width": net.width,
        "tokens": net.tokens,
        "params_total": params_total(net),
        "params_blocks": params_blocks(net),
        "params_embedding": params_embedding(net),
        "params_head": params_head(net),
        "train_flops_per_image": int_if_whole(train_flops(config)),
        "memory_training_bytes": training_memory(config, device, precision).total,
        "memory_inference_bytes": inference_memory(config, device, precision).total,
    }


def sampling_bill(config: Config, spent: Sequence[DepthDistribution]) -> dict[str, Any]:
    """NFE, and MACs of a sample and of its mean pass, where the steps spend these loops."""
    net = network(config)
    nfe = sum(evaluations_per_step(config))

    def total(of_pass: Callable[[Network, int], int]) -> float:
        return cost_per_sample(config, spent, partial(of_pass, net))

    macs, trunk = total(macs_per_pass), total(macs_trunk)
    return {
        "macs_per_pass": int_if_whole(macs / nfe),
        "macs_per_pass_trunk": int_if_whole(trunk / nfe),
        "macs_per_pass_attention": int_if_whole(total(macs_attention) / nfe),
        "nfe": nfe,
        "macs_per_sample": int_if_whole(macs),
        "macs_per_sample_trunk": int_if_whole(trunk),
        "flops_per_sample": int_if_whole(2 * macs),
    }


def int_if_whole(value: float) -> float:
    """A whole number as an int: 4 loops are 4, not 4.0."""
    return int(value) if value == int(value) else value
