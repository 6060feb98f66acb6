"""The studies of sweeps/: each is what it says, and its trials train and are measured."""

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies import queue_of

from eltlab.config.cost.flops import budget_flops
from eltlab.config.schema import Config
from eltlab.runs.result_table import load
from eltlab.studies.study import Study, grid_trials, load_study
from eltlab.studies.study_file import known_studies, read_study, study_path

NAMES = [
    "anytime",
    "block_size",
    "ilsd_weight",
    "imagenette",
    "loop_anatomy",
    "loops_vs_depth",
    "pareto",
    "sprites_loops",
    "supervision",
]
GRIDS = [name for name in NAMES if name not in ("ilsd_weight", "pareto")]
SMALL = ["budget.images=64", "metrics.samples=40", "sampler.steps=2", "trainer.validations=2"]


def configs(name: str, preset: str | None = None) -> dict[str, Config]:
    """The arms of a grid study, with seed 0."""
    study = load_study(name, preset, [], "runs", {"seeds": [0]})
    return {trial.config.name.partition("/")[2]: trial.config for trial in grid_trials(study)}


def test_these_are_the_studies() -> None:
    assert known_studies() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_study_and_its_presets_are_valid_and_say_what_they_are(name: str) -> None:
    path = study_path(name)
    file = read_study(path, None, {})
    assert "quick" in file.presets and file.threads == 1
    for preset in (None, *file.presets):
        study = load_study(name, preset, [], "runs", {})
        if study.file.sampler == "grid":
            assert len({t.config.name for t in grid_trials(study)}) * len(study.file.seeds) == len(
                grid_trials(study)
            )
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].endswith("?") and f"make sweep SWEEP={name}" in header[1]
    assert any(line.startswith("# Cost: ") for line in header)
    assert any(line.startswith("# Finding: ") for line in header)


@pytest.mark.parametrize("name", GRIDS)
def test_the_arms_of_a_study_train_for_equal_flops(name: str) -> None:
    arms = configs(name).values()
    flops = [budget_flops(config) for config in arms]
    assert max(flops) < 1.003 * min(flops)
    for key in ("batch_size", "optim", "data", "sampler", "metrics", "objective"):
        assert len({repr(getattr(config, key)) for config in arms}) == 1


def test_loops_vs_depth_is_every_split_of_one_depth() -> None:
    arms = configs("loops_vs_depth")
    splits = {(c.unique_layers, c.loops, c.supervision.name) for c in arms.values()}
    looped = {(8 // loops, loops, how) for loops in (2, 4, 8) for how in ("ilsd", "final")}
    assert splits == looped | {(8, 1, "final")} and len(arms) == 7


def test_anytime_trains_a_model_for_each_count_of_the_elastic_one() -> None:
    arms = configs("anytime")
    assert {(c.unique_layers, c.loops) for n, c in arms.items() if "vanilla" in n} == {
        (2, 2),
        (2, 3),
        (2, 4),
    }
    assert {c.unique_layers for n, c in arms.items() if "unique" in n} == {2, 4, 6, 8}
    assert arms["elastic"].supervision.name == "ilsd" and arms["elastic"].loops == 4
    assert {c.objective.name for c in configs("anytime", "masked").values()} == {"masked"}


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
    assert images == {64_000}
    fashion = configs("supervision", "fashion_mnist").values()
    assert {config.data.name for config in fashion} == {"fashion_mnist"}


# --- a smoke run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("imagenette", "sprites_loops")])
def test_two_trials_of_a_study_run(name: str, tmp_path: Path) -> None:
    """The first and last trial of a grid, or two of a sampler, by a worker: it runs what the queue has."""
    own = [] if name in GRIDS else ["trials=2"]
    study = load_study(name, "quick", SMALL, str(tmp_path), {"trials": 2} if own else {})
    if name in GRIDS:
        planned = grid_trials(study)
        queue_of(study).fill([planned[0], planned[-1]])
    command = [sys.executable, "-m", "eltlab.sweep", name, "preset=quick", *SMALL, *own]
    done = subprocess.run([*command, f"runs_dir={tmp_path}", "worker=0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_trials(study, tmp_path)


def check_trials(study: Study, folder: Path) -> None:
    trials = [t for t in queue_of(study).trials() if "forbidden" not in t.user_attrs]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2, [
        trial.user_attrs.get("error") for trial in trials
    ]
    rows = load(folder)
    rows = rows[rows["kind"] == "eval"]
    assert set(rows["study"]) == {study.name} and set(rows["trial"]) == {t.number for t in trials}
    for trial in trials:
        found = rows[rows["trial"] == trial.number]
        assert list(found["loops"]) == found["cfg.evaluate_loops"].iloc[0]
        assert set(range(1, int(found["loops_train"].iloc[0]) + 1)) <= set(found["loops"])
        assert len(trial.values) == len(study.file.objectives)
