"""How Lightning spreads a run over the processes that devices.py knows."""

from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from eltlab.common import ranks
from eltlab.config.schema import Config
from eltlab.training.sharding import Sharded


def placement(config: Config) -> dict[str, Any]:
    """Arguments of Lightning's Trainer."""
    # Said, not found out: Lightning would find SLURM too, and answer its signals by checkpoints and
    # requeues of its own. torchrun's variables are also those that cluster.py sets in a job.
    launched = ranks.is_launched()
    place: dict[str, Any] = {
        "plugins": TorchElasticEnvironment() if launched else LightningEnvironment()
    }
    if ranks.world_size() == 1:
        return place
    if config.trainer.strategy == "fsdp":
        return place | {"strategy": Sharded()}
    strategy = DDPStrategy(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=leaves_unused(config),
    )
    return place | {"strategy": strategy}


def leaves_unused(config: Config) -> bool:
    """Whether some steps give a parameter no gradient: the injection, in a pass of one loop."""
    return config.model.inject_input and 1 in config.supervision.spent(config.loops).depths
