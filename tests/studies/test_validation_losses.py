"""validation.csv as a study reads it: whole validations only."""

from pathlib import Path

from support.small_studies import TUNED, opened

from eltlab.runs.run_folder import Run
from eltlab.studies.study import Study
from eltlab.studies.tuning import tuned_arms
from eltlab.studies.validation_losses import tuning_losses, validation_curve


def written(path: Path, steps: tuple[int, ...], exits: tuple[int, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{step},8,{exit},0.1,{step + exit + level},{level}"
        for step in steps
        for level in range(5)
        for exit in exits
    ]
    path.write_text("\n".join(["step,images,exit,level,loss,gap", *lines, ""]))
    return path


def test_a_pruner_sees_whole_validations_of_the_exit_it_watches(tmp_path):
    path = written(tmp_path / "validation.csv", (1, 2), (1, 2))
    assert validation_curve(path, "loss", 2) == [5.0, 6.0]
    assert validation_curve(path, "gap", 1) == [2.0, 2.0]
    path.write_text(path.read_text()[:-1])  # without a newline, the last line may be incomplete
    assert validation_curve(path, "loss", 2) == [5.0]
    assert validation_curve(path, "loss", 1) == [4.0, 5.0]
    assert validation_curve(tmp_path / "none", "loss", 2) == []


def test_the_losses_of_a_tuning_run_are_those_of_all_its_exits_or_none(tmp_path):
    study: Study = opened(tmp_path, TUNED)
    config = tuned_arms(study)[0].tuning[0].config
    path = Run.of(config).folder / "validation.csv"
    assert tuning_losses(config) == {}
    written(path, (config.steps,), (1, 2, 3, 4))
    assert tuning_losses(config) == {n: config.steps + n + 2.0 for n in (1, 2, 3, 4)}
    path.write_text(path.read_text()[:-1])
    assert tuning_losses(config) == {}
