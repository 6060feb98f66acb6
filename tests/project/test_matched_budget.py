"""Which keys a study at matched training FLOPs changes, for every key that there is.

A new key fails `test_every_key_is_stated` until it is in one of the sets below. SHARES and the keys of the
schedule are what arms with different numbers of steps would otherwise differ in.
"""

from dataclasses import fields
from itertools import pairwise

import pytest
from support.budgets import FREE

from eltlab.config.cost.flops import budget_flops
from eltlab.config.keys import flatten, walk
from eltlab.config.schema import Config, IlsdConfig
from eltlab.runs.compose_config import compose
from eltlab.training.callbacks import evenly_spaced_steps
from eltlab.training.ema import ema_decay, exponent
from eltlab.training.looped_module import learning_rate
from eltlab.training.supervision import ramp

# A budget in FLOPs is converted to these.
CHANGED = {"budget.images"}
# Set in place of budget.images, and empty once it is known.
REPLACED = {"budget.train_flops", "budget.match"}
# Shares of the run, or functions of its share: the same part of a longer run.
SHARES = {
    *("optim.warmup", "optim.schedule", "ema.lengths", "trainer.grids", "trainer.validations"),
    *("supervision.weight.shape", "supervision.weight.start", "supervision.weight.end"),
}
# Counted in steps or per step: the same number, in a longer run a smaller share. β₁ and β₂ set how many
# gradients AdamW averages, which does not grow with the run; the weights decay by lr · weight_decay per step.
PER_STEP = {
    *("optim.lr", "optim.betas", "optim.weight_decay", "optim.clip", "batch_size", "trainer.log_every"),
}
# The model, its data and its loss: whatever the budget, the same network on the same images.
THE_SAME = {
    *("loops", "unique_layers", "seed"),
    *(f"model.{each.name}" for each in fields(Config().model)),
    *(f"data.{each.name}" for each in fields(Config().data)),
    *("objective.name", "objective.label_dropout", "objective.file", "objective.source"),
    *("objective.label_smoothing", "objective.prediction", "objective.bias", "objective.logsnr_min"),
    *("objective.logsnr_max", "objective.shift", "objective.time_mean", "objective.time_std"),
    *("supervision.name", "supervision.file", "supervision.source", "supervision.min_loops"),
    *("supervision.distill", "supervision.inner", "supervision.law", "supervision.mean"),
    "supervision.max_loops",
}
# How a run is observed, measured, stored and executed, which no weight depends on.
NOT_TRAINING = {
    *("name", "runs_dir", "evaluate", "evaluate_loops", "study", "trial", "ema.length"),
    *("sampler.batch", "tuned", "tuned_on"),
    *(f"sampler.{name}" for name in ("name", "steps", "guidance", "guidance_schedule", "loops", "halting")),
    *(f"sampler.{name}" for name in ("temperature", "temperature_range", "confidence_noise", "clip")),
    *(f"metrics.{each.name}" for each in fields(Config().metrics)),
    *(f"trainer.{name}" for name in ("name", "accelerator", "devices", "nodes", "strategy", "accumulate")),
    *(f"trainer.{name}" for name in ("precision", "compile", "recompute", "checkpoint_seconds", "wandb")),
    *(f"trainer.slurm.{each.name}" for each in fields(Config().trainer.slurm)),
}
STATED = (CHANGED, REPLACED, SHARES, PER_STEP, THE_SAME, NOT_TRAINING)
# The arms of a study: they differ in FLOPs per image, so at equal FLOPs also in the number of steps.
ARMS = (
    [],
    ["supervision=final"],
    ["loops=1"],
    ["supervision=deep"],
    ["supervision=random_depth"],
    ["model.width=32"],
    ["objective=diffusion", "optim.schedule=cosine"],
)


def all_keys() -> set[str]:
    """Every key of every objective, supervision and sampler."""
    found = {name for name, _, _ in walk(Config())}
    for section, kinds in Config.KINDS.items():
        for kind in kinds.values():
            found |= {name for name, _, _ in walk(kind(), f"{section}.")}
    return found


def test_every_key_is_stated_once() -> None:
    stated = set.union(*STATED)
    assert all_keys() - stated == set(), "say in this file whether a matched budget changes these keys"
    assert stated - all_keys() == set(), "keys that are gone"
    assert sum(map(len, STATED)) == len(stated), "keys that are in two sets"


@pytest.mark.parametrize("arm", ARMS, ids=" ".join)
def test_a_matched_budget_changes_the_number_of_images_and_nothing_else(arm: list[str]) -> None:
    short, long = (compose([*FREE, *arm, f"budget.train_flops={flops}"]) for flops in (1e9, 4e9))
    assert budget_flops(long) / budget_flops(short) == pytest.approx(4, rel=0.05)
    one, other = flatten(short), flatten(long)
    assert {key for key in one if one[key] != other[key]} - {"name"} == CHANGED  # a name says it
    assert all(one[key] is None for key in REPLACED)


@pytest.mark.integration
@pytest.mark.parametrize("arm", ARMS, ids=" ".join)
def test_warm_up_averages_and_schedules_are_the_same_share_at_four_times_the_budget(arm: list[str]) -> None:
    """Done-when 1: learning rate, averages, λ, grids and validations against the share of the run."""
    short, long = (compose([*FREE, *arm, f"budget.train_flops={flops}"]) for flops in (2e10, 8e10))
    assert long.steps == pytest.approx(4 * short.steps, abs=4) and short.steps > 100
    for share in (0.01, 0.03, 0.05, 0.2, 0.5, 0.99):
        rates = [learning_rate(config, round(share * config.steps) - 1) for config in (short, long)]
        assert rates[0] == pytest.approx(rates[1], abs=short.optim.lr / short.steps / short.optim.warmup)
    assert warmup_share(short) == pytest.approx(warmup_share(long), abs=1 / short.steps)
    for length in short.ema.lengths:
        assert average_length(short, length) == pytest.approx(average_length(long, length), rel=0.02)
        assert average_length(long, length) == pytest.approx(length, rel=0.02)
    for times in (short.trainer.grids, short.trainer.validations):
        shares = [
            [step / config.steps for step in sorted(evenly_spaced_steps(config.steps, times))]
            for config in (short, long)
        ]
        assert shares[0] == pytest.approx(shares[1], abs=1 / short.steps)
    if isinstance(short.supervision, IlsdConfig):
        weights = [
            ramp(config.supervision.weight, config.steps // 2, config.steps)  # type: ignore[attr-defined]
            for config in (short, long)
        ]
        assert weights[0] == pytest.approx(weights[1], abs=2 / short.steps)


def warmup_share(config: Config) -> float:
    """The share of the run in which the learning rate rises."""
    rates = [learning_rate(config, step) for step in range(config.steps)]
    return sum(later > rate for rate, later in pairwise(rates)) / config.steps


def average_length(config: Config, length: float) -> float:
    """The standard deviation of the steps that an average holds, as a share of the run."""
    weights: list[float] = []
    rest = 1.0  # share that the steps before have in the average at the end
    for step in reversed(range(config.steps)):
        decay = ema_decay(exponent(length), step)
        weights.append(rest * (1 - decay))
        rest *= decay
    times = range(config.steps, 0, -1)
    mean = sum(w * t for w, t in zip(weights, times, strict=True))
    return sum(w * (t - mean) ** 2 for w, t in zip(weights, times, strict=True)) ** 0.5 / config.steps
