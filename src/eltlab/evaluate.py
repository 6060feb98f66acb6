"""python -m eltlab.evaluate run=DIR loops=[1,2,4] samples=N: measures a run, one row per loop count.

Rows are appended to DIR/rows.jsonl (a measurement that exists is not repeated) and relative updates to
DIR/dynamics.csv; pictures are stored in DIR/samples/. Read rows with eltlab.results.load('runs').
Keys of fit: sampler.*, metrics.*, trainer.accelerator, trainer.devices, and data.root or metrics.images if
the images are stored elsewhere now.

examples:
  python -m eltlab.evaluate run=runs/NAME/ID 'loops=[1,2,4,8]'
  python -m eltlab.evaluate run=runs/NAME/ID 'loops=[4to1,[4,4,2,2]]' sampler.steps=4
  python -m eltlab.evaluate run=runs/NAME/ID loops=4 sampler.guidance=2 sampler.halting=0.05
"""

from dataclasses import dataclass, replace
from typing import Any

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.config.data_rules import check_samples
from eltlab.config.devices import needs_launch
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.config.sampling_schedules import parse_schedules
from eltlab.evaluation.missing_rows import default_schedules
from eltlab.evaluation.prepare_run import prepare_evaluation
from eltlab.launch import launch


@dataclass
class Keys:
    run: str | None = key(None, "the folder that fit printed (required)")
    loops: Any = key(
        None,
        "loop counts, ramps over the steps such as 4to1, and lists of one count per step; "
        "null: evaluate_loops of the run",
    )
    samples: int | None = key(None, "samples per loop count; null: metrics.samples of the run", low=1)
    seed: int | None = key(None, "seed of the sampling noise; null: the run's seed", low=0)


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()))


def main(overrides: list[str]) -> None:
    run, config, keys = open_run(overrides, Keys())
    if keys.samples is not None:
        config.metrics.samples = keys.samples
        check_samples(config, "samples")
    schedules = default_schedules(replace(config, evaluate=True))
    if keys.loops is not None:
        schedules = parse_schedules(keys.loops, config.sampler.steps)
    if needs_launch(config):
        launch("evaluate", overrides, config.trainer.devices)
        return
    prepared = prepare_evaluation(run, config, schedules, config.seed if keys.seed is None else keys.seed)

    from eltlab.evaluation.evaluate import evaluate

    evaluate(prepared)
    print(f"run: {run.folder}")


if __name__ == "__main__":
    run_command(main, usage)
