"""Checks trainer.devices and trainer.nodes against the processes that a launcher started."""

from eltlab.common.errors import UserError
from eltlab.common.ranks import is_launched, local_world_size, world_size
from eltlab.config.schema import Config


def adopt_launcher_devices(config: Config) -> None:
    """Sets trainer.devices and trainer.nodes to what the launcher started.

    Raises UserError where others were asked for, or where the batch cannot be dealt out.
    """
    if not is_launched():
        return
    trainer = config.trainer
    devices = local_world_size()
    nodes = world_size() // devices
    if (trainer.devices, trainer.nodes) not in ((1, 1), (devices, nodes)):
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: the launcher started "
            f"{devices} processes on each of {nodes} nodes; leave both keys out"
        )
    trainer.devices, trainer.nodes = devices, nodes
    check_shares(config)


def needs_launch(config: Config) -> bool:
    """Whether this process should start those that do the work. Raises UserError where it cannot."""
    if is_launched() or config.world == 1:
        return False
    if config.trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes={config.trainer.nodes}: start the command on every node, by torchrun "
            "--nnodes=… --nproc-per-node=… -m eltlab.fit, or submit it by trainer=slurm"
        )
    return True


def check_shares(config: Config) -> None:
    """Raises UserError where a batch does not go evenly over the devices and pieces."""
    trainer, batch = config.trainer, config.batch_size
    shares = config.world * trainer.accumulate
    if batch % shares:
        divisors = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes} trainer.accumulate="
            f"{trainer.accumulate}: their product {shares} does not divide batch_size={batch}, the batch "
            f"of all devices and pieces together; make it one of {divisors}"
        )


def one_device(config: Config, what: str) -> None:
    """Raises UserError for a configuration of several devices where only one is used."""
    trainer = config.trainer
    if config.world > 1:
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: {what}; leave both out"
        )
