"""Checks trainer.devices and trainer.nodes against the processes that a launcher started."""

from eltlab.common.errors import UserError
from eltlab.common.ranks import is_launched, local_world_size, world_size
from eltlab.config.keys import divisors
from eltlab.config.schema import Config


def adopt_launcher_devices(config: Config) -> None:
    """Sets trainer.devices and trainer.nodes to what the launcher started.

    Raises UserError if other numbers were given, or if the batch cannot be divided among them.
    """
    if not is_launched():
        return
    trainer = config.trainer
    devices = local_world_size()
    nodes = world_size() // devices
    if (trainer.devices, trainer.nodes) not in ((1, 1), (devices, nodes)):
        raise UserError(
            f"{_devices(config)}: the launcher started {devices} processes on each of {nodes} nodes; "
            "remove both keys"
        )
    trainer.devices, trainer.nodes = devices, nodes
    check_shares(config)


def needs_launch(config: Config) -> bool:
    """Whether this process should start the processes that do the work. Raises UserError if it cannot."""
    if is_launched() or config.world == 1:
        return False
    if config.trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes={config.trainer.nodes}: start the command on every node, by torchrun "
            "--nnodes=… --nproc-per-node=… -m eltlab.fit, or submit it by trainer=slurm"
        )
    return True


def check_shares(config: Config) -> None:
    """Raises UserError if the batch cannot be divided evenly among devices and micro-batches."""
    parts, batch = config.world * config.trainer.accumulate, config.batch_size
    if batch % parts:
        raise UserError(
            f"{_devices(config)} trainer.accumulate={config.trainer.accumulate}: their product {parts} does "
            f"not divide batch_size={batch}, the batch over all devices and micro-batches; make it one of "
            f"{divisors(batch)}"
        )


def check_one_device(config: Config, reason: str) -> None:
    """Raises UserError for a configuration with several devices if only one is used."""
    if config.world > 1:
        raise UserError(f"{_devices(config)}: {reason}; remove both keys")


def _devices(config: Config) -> str:
    return f"trainer.devices={config.trainer.devices} trainer.nodes={config.trainer.nodes}"
