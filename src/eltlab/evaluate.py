"""python -m eltlab.evaluate run=DIR loops=[1,2,4] samples=N: measures a run, one row a loop count."""

from dataclasses import dataclass, replace
from typing import Any

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.config.checks import at_least
from eltlab.config.data_rules import check_samples
from eltlab.config.devices import needs_launch
from eltlab.config.schedules import parse_schedules
from eltlab.evaluation.missing_rows import default_schedules
from eltlab.evaluation.prepare import prepare_evaluation
from eltlab.launch import launch


@dataclass
class Keys:
    run: str | None = None
    loops: Any = None
    samples: int | None = None
    seed: int | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "  run=DIR              the folder that fit printed (required)\n"
        "  'loops=[1,2,4to1]'   loop counts, also beyond the trained one, and schedules over the sampling\n"
        "                       steps: 4to1 (linear) or [4,4,2,2] (each step); default: evaluate_loops\n"
        "  samples=N            default: metrics.samples of the run\n"
        "  seed=N               of the sampling noise; default: the run's seed\n"
        "  sampler.* metrics.*  as in fit: sampler.steps=64 sampler.guidance=2 sampler.halting=0.05\n"
        "  data.root=FOLDER     where the same images, or the same encoded set, lie today\n"
        "  metrics.images=PLACE where the images of the encoded set lie today\n"
        "  trainer.accelerator=cpu trainer.devices=2\n\n"
        "Rows go to DIR/rows.jsonl (a measurement made before is not made again), relative updates to\n"
        "DIR/dynamics.csv, pictures to DIR/samples/. Read the rows with eltlab.results.load('runs')."
    )


def main(overrides: list[str]) -> None:
    run, config, keys = open_run(overrides, Keys())
    at_least(keys, 0, "seed")
    if keys.samples is not None:
        config.metrics.samples = keys.samples
        check_samples(config, "samples")
    schedules = default_schedules(replace(config, evaluate=True))
    if keys.loops is not None:
        schedules = parse_schedules(keys.loops, config.sampler.steps)
    if needs_launch(config):
        launch("evaluate", overrides, config.trainer.devices)
        return
    prepared = prepare_evaluation(
        run, config, schedules, config.seed if keys.seed is None else keys.seed
    )

    from eltlab.evaluation.evaluate import evaluate

    evaluate(prepared)
    print(f"run: {run.folder}")


if __name__ == "__main__":
    run_command(main, usage)
