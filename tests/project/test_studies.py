"""The studies of sweeps/: each is what it says, and its trials train and are measured."""

import random
import re
from pathlib import Path

import pytest
import torch
from support.commands import run
from support.networks import perturbed
from support.quick_studies import SMALL, check_trials
from support.small_studies import queue_of

from eltlab import sweep
from eltlab.config.cost.flops import budget_flops
from eltlab.config.schema import Config
from eltlab.model.patches import patches_of
from eltlab.studies.space import Dice, draw
from eltlab.studies.study import grid_trials, load_study
from eltlab.studies.study_file import known_studies, read_study, study_path
from eltlab.studies.tuning import tuned_arms, tuning_runs
from eltlab.training.looped_module import LoopedModule

NAMES = [
    "anytime",
    "block_size",
    "headline",
    "ilsd_weight",
    "imagenette",
    "loop_anatomy",
    "loops_or_steps",
    "loops_vs_depth",
    "min_loops",
    "pareto",
    "recipe",
    "sprites_loops",
    "supervision",
    "unique_layers",
]
GRIDS = [name for name in NAMES if name not in ("ilsd_weight", "pareto")]


def configs(name: str, preset: str | None = None) -> dict[str, Config]:
    """The arms of a grid study, with seed 0."""
    study = load_study(name, preset, [], "runs", {"seeds": [0]})
    return {trial.config.name.partition("/")[2]: trial.config for trial in grid_trials(study)}


def test_these_are_the_studies() -> None:
    assert known_studies() == NAMES


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_a_study_and_its_presets_are_valid_and_say_what_they_are(name: str) -> None:
    path = study_path(name)
    file = read_study(path, None, {})
    assert "quick" in file.presets and file.threads == 1
    for preset in (None, *file.presets):
        study = load_study(name, preset, [], "runs", {})
        if study.file.sampler == "grid":
            trials = grid_trials(study)
            arms = {study.arm(trial.params, trial.config) for trial in trials}
            assert len(arms) * len(study.file.seeds) == len(trials)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert max(map(len, header)) <= 125
    assert header[0].endswith("?") and f"make sweep SWEEP={name}" in header[1]
    assert any(line.startswith("# Cost: ") for line in header)
    assert any(line.startswith("# Finding: ") for line in header)


PLANNED = re.compile(
    r"^(\d+) (?:trials(?: x (\d+) seeds)?|tuning runs).*?([\d.]+)([GTPE]) training FLOPs", re.M
)
STATED = r"(\d+) trainings(?: and (\d+) of tuning)?[,:] ([\d.]+)[\d, and]* ([TPE])FLOPs"
SI = {"G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", [None, "quick"])
def test_the_cost_in_the_header_is_that_of_the_plan(
    name: str, preset: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which = [f"preset={preset}"] if preset else []
    sweep.main([name, *which, "plan=true", "trainer.accelerator=cpu", f"runs_dir={tmp_path}"])
    planned = PLANNED.findall(capsys.readouterr().out)
    runs = [int(count) * int(seeds or 1) for count, seeds, *_ in planned]
    flops = sum(float(number) * SI[unit] for *_, number, unit in planned)
    header = " ".join(line.lstrip("# ") for line in study_path(name).read_text().splitlines()[:12])
    stated = re.search(r"quick: " + STATED if preset else r"Cost: (?:at most )?" + STATED, header)
    assert stated is not None
    trainings, tuning, number, unit = stated.groups()
    if name != "loops_or_steps":  # which measures each training in several trials
        assert [int(trainings), *([int(tuning)] if tuning else [])] == runs
    assert float(number) * SI[unit] == pytest.approx(flops, rel=0.03, abs=0.5e12)


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_a_rate_chosen_in_a_part_of_the_budget_decays_and_the_part_is_long(name: str) -> None:
    # Otherwise the whole budget needs a lower one (docs/results/tuning_budget.md).
    for preset in (None, *read_study(study_path(name), None, {}).presets):
        study = load_study(name, preset, [], "runs", {})
        if study.file.tune is not None and study.file.tune.budget < 1:
            configs = [trial.config for trial in grid_trials(study)]
            assert {config.optim.schedule for config in configs} == {"cosine"}
            [images] = {config.images for config in configs if config.loops == 1}  # of the twin
            assert study.file.tune.budget * images >= 48_000


@pytest.mark.integration
@pytest.mark.parametrize("name", [name for name in GRIDS if name != "min_loops"])
def test_the_arms_of_a_study_train_for_equal_flops(name: str) -> None:
    arms = configs(name).values()
    flops = [budget_flops(config) for config in arms]
    # Each budget is rounded to whole steps, so two arms differ by at most one.
    assert max(flops) - min(flops) <= max(budget_flops(config) / config.steps for config in arms)
    own = {"recipe": ("batch_size", "optim"), "loops_or_steps": ("sampler",)}.get(name, ())
    for key in {"batch_size", "optim", "data", "sampler", "metrics", "objective"} - {*own}:
        assert len({repr(getattr(config, key)) for config in arms}) == 1


def test_loops_vs_depth_is_every_split_of_one_depth() -> None:
    arms = configs("loops_vs_depth")
    splits = {(c.unique_layers, c.loops, c.supervision.name) for c in arms.values()}
    looped = {(8 // loops, loops, how) for loops in (2, 4, 8) for how in ("ilsd", "final")}
    assert splits == looped | {(8, 1, "final")} and len(arms) == 7


@pytest.mark.integration
def test_anytime_trains_a_model_for_each_count_of_the_elastic_one() -> None:
    arms = configs("anytime")
    assert {(c.unique_layers, c.loops) for n, c in arms.items() if "vanilla" in n} == {
        (2, 2),
        (2, 3),
        (2, 4),
    }
    assert {c.unique_layers for n, c in arms.items() if "unique" in n} == {2, 8}
    for name in ("ilsd", "deep", "random_depth"):
        assert arms[name].supervision.name == name and arms[name].loops == 4
    assert {c.objective.name for c in configs("anytime", "masked").values()} == {"masked"}


def test_headline_compares_a_loop_with_its_twin_each_at_its_best() -> None:
    arms = configs("headline")
    splits = {name: (c.unique_layers, c.loops, c.supervision.name) for name, c in arms.items()}
    assert splits == {"elastic": (2, 4, "ilsd"), "vanilla": (2, 4, "final"), "twin": (8, 1, "final")}
    assert arms["elastic"].evaluate_loops == arms["vanilla"].evaluate_loops == [1, 2, 3, 4, 5, 6]
    for preset in (None, "masked", "fashion_mnist", "fashion_mnist_masked"):
        study = load_study("headline", preset, [], "runs", {})
        assert study.file.tune is not None and "optim.lr" in study.file.tune.keys


@pytest.mark.parametrize(
    ("preset", "layers"), [(None, 2), ("four", 4), ("eight", 8), ("two_short", 2), ("eight_short", 8)]
)
def test_unique_layers_has_the_twin_and_the_block_in_one_pass(preset: str | None, layers: int) -> None:
    arms = configs("unique_layers", preset)
    splits = {name: (c.unique_layers, c.loops) for name, c in arms.items()}
    assert splits == {"elastic": (layers, 4), "twin": (4 * layers, 1), "plain": (layers, 1)}
    assert arms["twin"].images == (8_000 if preset and "short" in preset else 32_000)


@pytest.mark.integration
@pytest.mark.parametrize(("preset", "steps"), [(None, [2, 4, 8, 16, 32]), ("masked", [2, 4, 8, 16])])
def test_loops_or_steps_measures_one_training_of_each_arm_in_many_ways(
    preset: str | None, steps: list[int]
) -> None:
    study = load_study("loops_or_steps", preset, [], "runs", {"seeds": [0]})
    found: dict[str, set[tuple[int, float | None]]] = {}
    for trial in grid_trials(study):
        sampler = trial.config.sampler
        found.setdefault(str(trial.config.name), set()).add((sampler.steps, sampler.halting))
        if sampler.halting is not None:
            assert trial.config.evaluate_loops == [4]
        elif "elastic" in str(trial.config.name):
            assert trial.config.evaluate_loops == [1, 2, 3, 4, "4to1", "1to4"]
    every = {(count, None) for count in steps}
    halted = {(count, threshold) for count in steps for threshold in (0.06, 0.08, 0.12)}
    prefix = "loops_or_steps-masked/" if preset else "loops_or_steps/"
    assert found == {
        f"{prefix}elastic": every | halted,
        f"{prefix}vanilla": every,
        f"{prefix}twin": every,
    }
    assert len(tuning_runs(tuned_arms(study))) == 3 * 4  # one set for each training, however it is measured


def test_min_loops_changes_the_smallest_student_at_each_block_size() -> None:
    arms = configs("min_loops").values()
    for layers in (1, 2, 4, 8):
        block = [c for c in arms if c.unique_layers == layers]
        assert len({c.images for c in block}) == len({budget_flops(c) for c in block}) == 1
    assert {(c.unique_layers, c.supervision.min_loops) for c in arms} == {
        (layers, least) for layers in (1, 2, 4, 8) for least in (1, 2, 3)
    }
    assert {(c.loops, c.supervision.name) for c in arms} == {(4, "ilsd")}


def test_recipes_are_chosen_without_the_test_split() -> None:
    path = study_path("recipe")
    for preset in (None, *read_study(path, None, {}).presets):
        assert "data.tuning=true" in read_study(path, preset, {}).base


def test_block_size_keeps_heads_and_mlp_in_proportion() -> None:
    arms = configs("block_size").values()
    assert len(arms) == 18
    for config in arms:
        model = config.model
        assert model.width == 16 * model.heads == model.mlp_width // 4
        assert 4 <= config.unique_layers * config.loops == model.depth <= 8


def test_loop_anatomy_changes_one_thing_at_a_time() -> None:
    arms = configs("loop_anatomy")
    plain = arms.pop("plain")
    assert len(arms) == 5
    for name, config in arms.items():
        differing = {
            key for key in vars(plain.model) if getattr(config.model, key) != getattr(plain.model, key)
        }
        assert differing == ({"prelude", "coda"} if name == "prelude_coda" else {name})
        assert config.model.depth == 8


def test_supervision_compares_at_equal_flops_and_at_equal_images() -> None:
    assert set(configs("supervision")) == {"final", "ilsd", "deep", "random_depth"}
    images = {config.images for config in configs("supervision", "images").values()}
    assert images == {32_000}
    fashion = configs("supervision", "fashion_mnist").values()
    assert {config.data.name for config in fashion} == {"fashion_mnist"}


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_every_arm_of_a_study_is_planned_and_takes_a_step(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main([name, "preset=quick", "plan=true", "trainer.accelerator=cpu", f"runs_dir={tmp_path}"])
    planned = capsys.readouterr().out
    arms = configs(name, "quick") if name in GRIDS else drawn(name, 4)
    assert arms
    for arm, config in arms.items():
        end = "-" if name == "loops_or_steps" else " "  # the plan adds how each training is measured
        assert name not in GRIDS or f"{arm}{end}" in planned
        take_step(config)


def drawn(name: str, count: int) -> dict[str, Config]:
    """Arms that a sampler may draw."""
    study, dice = load_study(name, "quick", [], "runs", {}), Dice(random.Random(0))
    draws = (draw(study.file.space, dice) for _ in range(1000))
    allowed = [params for params in draws if study.allows(params)]
    found = [study.config(params, 0) for params in allowed[:count]]
    return {config.name: config for config in found}


def take_step(config: Config) -> None:
    """One step of the optimizer on noise, from weights that are all in use, changes the whole network."""
    module = LoopedModule(config)
    perturbed(module.backbone)
    generator = torch.Generator().manual_seed(0)
    if config.objective.name == "masked":
        x = torch.randint(config.data.codebook, (2, config.data.tokens), generator=generator)
    else:
        x = torch.randn(2, *patches_of(config.data).shape, generator=generator)
    before = {name: value.clone() for name, value in module.backbone.named_parameters()}
    optimizer = module.configure_optimizers()
    module.training_step((x, torch.tensor([0, 1])), 0).backward()
    optimizer.step()
    for name, value in module.backbone.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[name]), (config.name, name)


def trials_of(name: str) -> object:
    """In make test one grid and one sampler."""
    return pytest.param(name, marks=[pytest.mark.slow] * (name not in ("loops_vs_depth", "pareto")))


@pytest.mark.parametrize("name", [trials_of(n) for n in NAMES if n not in ("imagenette", "sprites_loops")])
@pytest.mark.integration
def test_two_trials_of_a_study_run(name: str, tmp_path: Path) -> None:
    """The first and last trial of a grid, or two of a sampler, by a worker: it runs what the queue has."""
    own = [] if name in GRIDS else ["trials=2"]
    small = [text for text in SMALL if name != "loops_or_steps" or not text.startswith("sampler.steps")]
    study = load_study(name, "quick", small, str(tmp_path), {"trials": 2} if own else {})
    if name in GRIDS:
        planned = grid_trials(study)
        queue_of(study).fill([planned[0], planned[-1]])
    done = run("sweep", name, "preset=quick", *small, *own, f"runs_dir={tmp_path}", "worker=0")
    assert done.returncode == 0, done.stderr
    check_trials(study, tmp_path)
