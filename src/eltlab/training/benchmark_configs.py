"""Which configurations a benchmark compares, and the checks before it starts. Free of torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError
from eltlab.common.machine_facts import Machine, find_machine
from eltlab.common.text import format_bytes
from eltlab.config.cost.memory import side_by_side
from eltlab.config.devices import check_one_device
from eltlab.config.keys import check_divides
from eltlab.config.sampling_schedules import is_loop_count
from eltlab.config.schema import Config
from eltlab.runs.compose_config import compose


def check_counts(key: str, value: Any) -> list[int]:
    """The counts of a key that takes one count or a list, each once. Raises UserError."""
    counts = [value] if isinstance(value, int) else value
    if not isinstance(counts, list) or not all(map(is_loop_count, counts)):
        raise UserError(f"{key}={value}: give counts of at least 1, e.g. {key}=[1,8]")
    return list(dict.fromkeys(counts))


def benchmark_configs(overrides: list[str], loop_counts: Any, rounds: int) -> list[Config]:
    """The twin, then at each loop count the vanilla loop and the chosen supervision, all with the same
    number of layers per pass.

    Args:
        loop_counts: None for the loop count of the overrides.
        rounds: how many training steps each model takes, warm-up included.

    Raises UserError.
    """
    chosen = compose(overrides)
    if chosen.sampler.loops is not None:
        raise UserError(
            f"sampler.loops={chosen.sampler.loops}: bench samples at the loop counts of loop_counts, and "
            "at one loop; remove the key"
        )
    counts = [chosen.loops] if loop_counts is None else check_counts("loop_counts", loop_counts)
    assert chosen.unique_layers is not None  # filled in when the configuration was resolved
    depth = chosen.unique_layers * chosen.loops
    configs = []
    for loops in dict.fromkeys([1, *counts]):
        check_divides("loop_counts", loops, "the layers of a pass", depth)
        looped = [*overrides, f"loops={loops}", f"unique_layers={depth // loops}"]
        configs.append(compose([*looped, "supervision=final"]))
        if loops > 1 and chosen.supervision.name != "final":
            configs.append(compose(looped))
    check_one_device(chosen, "bench times one device")
    machine = find_machine(chosen.trainer.accelerator, chosen.trainer.precision)
    what = f"{len(configs)} models of batch_size={chosen.batch_size}"
    check_memory(configs, machine, what, "give fewer loop_counts or a smaller batch_size")
    images = (rounds + 2) * chosen.batch_size  # two more steps measure the peak of memory
    return [replace(c, budget=replace(c.budget, images=images)) for c in configs]


def check_memory(configs: list[Config], machine: Machine, what: str, fix: str) -> None:
    """Raises UserError if the configurations do not fit into memory side by side."""
    total = side_by_side(configs, machine.kind, machine.precision)
    if machine.memory is not None and total > machine.memory:
        raise UserError(
            f"{what} take {format_bytes(total)}, but {machine.name} has {format_bytes(machine.memory)}; {fix}"
        )


def make_output_folder(out: Path) -> None:
    """Creates the folder of the file of rows. Raises UserError if the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()
    except OSError as error:
        raise UserError(
            f"out={out}: cannot be written, {error.strerror}; give a file of rows, e.g. out=bench.jsonl"
        ) from error
