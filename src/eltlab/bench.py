"""python -m eltlab.bench [overrides]: times training and sampling: looped, vanilla and twin.

Takes the overrides of fit. Times training steps by phase and then sampling, for the twin with unique layers
and, at each loop count, for the vanilla loop (supervision=final) and the chosen supervision. All models are
interleaved, so a drift of the machine affects them equally. Its own keys:

examples:
  python -m eltlab.bench loops=4
  python -m eltlab.bench model=elt_b 'loop_counts=[2,4,12]' batch_size=8 sampler.steps=4
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eltlab.cli import own_keys
from eltlab.common.command import run_command
from eltlab.config.key_help import choice_help, help_text, key_help
from eltlab.config.keys import key
from eltlab.training.benchmark_configs import benchmark_configs, check_counts, make_output_folder


@dataclass
class Keys:
    loop_counts: Any = key(None, "loop counts at the same depth, e.g. [2,4,12]; null: loops")
    repeats: int = key(10, "timed rounds", low=1)
    warmup: int = key(2, "rounds before the timed ones", low=1)
    batches: Any = key(lambda: [1, 8, 64], "samples per batch; []: time training only")
    out: str | None = key(None, "file of the rows; null: RUNS_DIR/bench/rows.jsonl")


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()), choice_help())


def main(overrides: list[str]) -> None:
    keys, rest = own_keys(overrides, Keys())
    batches = check_counts("batches", keys.batches)
    configs = benchmark_configs(rest, keys.loop_counts, keys.warmup + keys.repeats)
    out = Path(keys.out or f"{configs[0].runs_dir}/bench/rows.jsonl").expanduser()
    make_output_folder(out)

    from eltlab.training.benchmark import benchmark

    benchmark(configs, batches, keys.repeats, keys.warmup, out)


if __name__ == "__main__":
    run_command(main, usage, stopped="the measurements that were finished are kept")
