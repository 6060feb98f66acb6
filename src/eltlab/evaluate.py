"""python -m eltlab.evaluate run=DIR loops=[1,2,4] samples=N: measures a run, one row per loop count.

Keys of sampling take lists too, for one row per combination: guidance, guidance_schedule, steps, halting,
temperature, temperature_range and confidence_noise of sampler.*, and ema.length.

Rows are appended to DIR/rows.jsonl (a measurement that exists is not repeated) and relative updates to
DIR/dynamics.csv; pictures are stored in DIR/samples/. Read rows with eltlab.results.load('runs').
Keys of fit: sampler.*, metrics.*, ema.length, trainer.accelerator, trainer.devices, and data.root or
metrics.images if the images are stored elsewhere now.

examples:
  python -m eltlab.evaluate run=runs/NAME/ID 'loops=[1,2,4,8]'
  python -m eltlab.evaluate run=runs/NAME/ID 'loops=[4to1,[4,4,2,2]]' sampler.steps=4
  python -m eltlab.evaluate run=runs/NAME/ID loops=4 'sampler.guidance=[1,1.5,2,3]'
  python -m eltlab.evaluate run=runs/NAME/ID loops=4 sampler.guidance=2 sampler.halting=0.05
"""

from dataclasses import dataclass, replace
from typing import Any

from eltlab.cli import open_settings
from eltlab.common.command import run_command
from eltlab.config.data_rules import check_samples
from eltlab.config.devices import needs_launch
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.config.sampling_schedules import parse_schedules
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import Request, default_requests
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
    run, configs, keys = open_settings(overrides, Keys())
    requests = [request for config in configs for request in find_requests(config, keys)]
    config = configs[0]
    if needs_launch(config):
        launch("evaluate", overrides, config.trainer.devices)
        return
    prepared = prepare_evaluation(run, requests, config.seed if keys.seed is None else keys.seed)

    from eltlab.evaluation.evaluate import evaluate

    evaluate(prepared)
    print(f"run: {run.folder}")


def find_requests(config: Config, keys: Keys) -> list[Request]:
    """The rows to measure under one configuration. Raises UserError."""
    if keys.samples is not None:
        config.metrics.samples = keys.samples
        check_samples(config, "samples")
    if keys.loops is None:
        return default_requests(replace(config, evaluate=True))
    return [Request(config, schedule) for schedule in parse_schedules(keys.loops, config.sampler.steps)]


if __name__ == "__main__":
    run_command(main, usage)
