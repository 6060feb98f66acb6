"""python -m eltlab.bench [overrides]: times training and sampling, looped beside vanilla beside twin."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eltlab.cli import options, own_keys
from eltlab.common.command import run_command
from eltlab.config.checks import at_least
from eltlab.training.benchmark_configs import benchmark_configs, check_counts, make_output_folder


@dataclass
class Keys:
    loop_counts: Any = None
    repeats: int = 10
    warmup: int = 2
    batches: Any = field(default_factory=lambda: [1, 8, 64])
    out: str | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "Takes the overrides of fit. Times training steps by phase and then sampling, for the twin with\n"
        "unique layers and, at each loop count, for the vanilla loop (supervision=final) and the chosen\n"
        "supervision. All models are interleaved, so a drift of the machine affects them alike.\n\n"
        "Its own keys:\n\n"
        "  'loop_counts=[2,4,12]'  loop counts at the same depth; default: loops\n"
        "  repeats=10 warmup=2     timed rounds, and rounds before them\n"
        "  'batches=[1,8,64]'      samples per batch; [] to time training only\n"
        "  out=FILE.jsonl          file of the rows; default: RUNS_DIR/bench/rows.jsonl\n\n"
        f"choices:\n{options()}\n\n"
        "examples:\n"
        "  python -m eltlab.bench loops=4\n"
        "  python -m eltlab.bench model=elt_b 'loop_counts=[2,4,12]' batch_size=8 sampler.steps=4"
    )


def main(overrides: list[str]) -> None:
    keys, rest = own_keys(overrides, Keys())
    at_least(keys, 1, "repeats warmup")
    batches = check_counts("batches", keys.batches)
    configs = benchmark_configs(rest, keys.loop_counts, keys.warmup + keys.repeats)
    out = Path(keys.out or f"{configs[0].runs_dir}/bench/rows.jsonl").expanduser()
    make_output_folder(out)

    from eltlab.training.benchmark import benchmark

    benchmark(configs, batches, keys.repeats, keys.warmup, out)


if __name__ == "__main__":
    run_command(main, usage, stopped="the measurements that were finished are kept")
