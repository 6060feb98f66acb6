"""How Lightning distributes a run over its processes: launcher, DDP or FSDP2."""

from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from eltlab.common import ranks
from eltlab.config.schema import Config
from eltlab.training.sharding import ShardedStrategy


def strategy_arguments(config: Config) -> dict[str, Any]:
    """The arguments of Lightning's Trainer: plugins and, with several ranks, strategy."""
    # Set explicitly: Lightning would detect SLURM and answer its signals with its own checkpoints and
    # requeues. A job started by cluster.py has torchrun's variables too.
    launched = ranks.is_launched()
    arguments: dict[str, Any] = {
        "plugins": TorchElasticEnvironment() if launched else LightningEnvironment()
    }
    if ranks.world_size() == 1:
        return arguments
    if config.trainer.strategy == "fsdp":
        return arguments | {"strategy": ShardedStrategy()}
    strategy = DDPStrategy(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=has_unused_parameters(config),
    )
    return arguments | {"strategy": strategy}


def has_unused_parameters(config: Config) -> bool:
    """Whether a step can leave a parameter without gradient: the injection, in a pass of one loop."""
    return config.model.inject_input and 1 in config.supervision.spent(config.loops).depths
