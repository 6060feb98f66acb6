"""A run from its start to its last row: its files, its rows, and the same command again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.command_line import everything
from support.run_outcomes import TWENTY_STEPS, assert_same, outcome
from support.sprite_runs import trained
from support.tiny_run import TINY, find_run

from eltlab import fit
from eltlab.common import files, package_info
from eltlab.common.errors import UserError
from eltlab.common.package_info import SOURCE, code_version
from eltlab.evaluation import evaluate
from eltlab.runs import row_files
from eltlab.runs.load_model import load as load_model
from eltlab.runs.result_table import load
from eltlab.runs.row_files import read_rows
from eltlab.training import train

objectives = pytest.mark.parametrize("objective", ["masked", "diffusion"])


@pytest.mark.integration
@objectives
def test_same_command_again_says_finished_and_changes_nothing(
    objective: str, undisturbed_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = undisturbed_run(objective)
    before = everything(runs)
    capsys.readouterr()
    fit.main([*TWENTY_STEPS, f"objective={objective}", f"runs_dir={runs}"])
    printed = capsys.readouterr()
    assert "finished before, at 160 images" in printed.err
    assert printed.out == f"run: {find_run(runs)}\n"
    assert before == everything(runs)


@pytest.mark.integration
@objectives
def test_grids_do_not_disturb_training(
    objective: str, undisturbed_run: Callable[[str], Path], tmp_path: Path
) -> None:
    quiet = [*TWENTY_STEPS, f"objective={objective}", "trainer.grids=0", "evaluate=false"]
    fit.main([*quiet, f"runs_dir={tmp_path}"])
    trained = torch.load(find_run(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same(trained["state_dict"], outcome(undisturbed_run(objective))[0]["state_dict"])
    assert not (find_run(tmp_path) / "samples").exists()


@objectives
def test_run_folder_contains_what_the_readme_lists(
    objective: str, undisturbed_run: Callable[[str], Path]
) -> None:
    run = find_run(undisturbed_run(objective))
    for name in (
        "config.yaml",
        "checkpoints/last.ckpt",
        "rows.jsonl",
        "metrics.csv",
        "dynamics.csv",
    ):
        assert (run / name).is_file(), name
    assert len(list((run / "samples").glob("images_*.png"))) == 2
    keys = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].keys()
    live = {key.removeprefix("backbone.") for key in keys if key.startswith("backbone.")}
    averages = [{key[6:] for key in keys if key.startswith(f"ema.{number}.")} for number in (0, 1)]
    assert averages == [live, live] and 3 * len(live) == len(keys)


@objectives
def test_one_row_per_loop_count_and_one_line_of_dynamics_per_loop(
    objective: str, undisturbed_run: Callable[[str], Path]
) -> None:
    runs = undisturbed_run(objective)
    table = load(runs)
    rows = table[table["kind"] == "eval"]
    assert list(rows["loops"]) == [1, 2]
    assert rows["fd_classifier"].notna().all() and rows["protocol"].nunique() == 1
    with (find_run(runs) / "dynamics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(d["loops"], d["step"], d["loop"]) for d in lines] == [
        (str(loops), str(step), str(loop))
        for loops in (1, 2)
        for step in range(4)
        for loop in range(1, loops + 1)
    ]
    assert all(float(line["update"]) > 0 for line in lines)


def test_a_second_process_is_refused(undisturbed_run: Callable[[str], Path]) -> None:
    runs = undisturbed_run("masked")
    with (
        files.file_lock(find_run(runs) / ".lock"),
        pytest.raises(UserError, match="another process is training it"),
    ):
        fit.main([*TWENTY_STEPS, "objective=masked", f"runs_dir={runs}"])


@pytest.mark.integration  # draws the sprites and fits a classifier
@pytest.mark.parametrize(
    "objective",
    [
        "masked",
        pytest.param("diffusion", marks=pytest.mark.slow),
        pytest.param("flow", marks=pytest.mark.slow),
    ],
)
def test_every_objective_trains_on_clips_and_samples_them(few_sprites, tmp_path, objective):
    run, rows = trained(
        few_sprites, tmp_path, f"objective={objective}", "metrics.extractor=classifier", "data.flip=true"
    )
    assert [row["loops"] for row in rows] == [1, 2]
    for row in rows:
        assert row["fd_classifier"] > 0 and 0 <= row["accuracy"] <= 1 and row["fd_ideal"] > 0
        assert json.loads(row["protocol_text"])["clips"] == "8 frames, stride 1, 64 pixels"
    pictures = sorted((run.folder / "samples").rglob("*.gif"))
    assert len(pictures) == 3  # the grid of training, and the tiles of each loop count
    for path in pictures:
        with Image.open(path) as opened:
            assert opened.n_frames == 8
    model = load_model(run.folder, "cpu")
    clips = model.sample([0, 1, 2], loops=1, seed=3)
    assert clips.shape == (3, 8, 3, 64, 64) and clips.dtype == torch.uint8
    assert torch.equal(model.sample([2], loops=1, seed=3, indices=[2]), clips[2:])


@pytest.mark.integration
def test_a_finished_run_is_measured_under_other_code_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "objective=diffusion", "loops=2", "trainer.grids=0", f"runs_dir={tmp_path}"]
    fit.main([*command, "evaluate_loops=[1]"])
    for module in (package_info, train, evaluate, row_files):
        monkeypatch.setattr(module, "SOURCE", "0123456789ab")
    capsys.readouterr()
    fit.main([*command, "evaluate_loops=[1,2]"])
    lines = capsys.readouterr().err.splitlines()
    [finished] = [line for line in lines if line.startswith("finished before")]
    trained_by = f"eltlab {code_version()} (source {SOURCE})"
    assert finished.endswith(
        f"trained by {trained_by}, not by this source (0123456789ab), and not trained again"
    )
    assert f"1 loop: measured before by {trained_by}, not this source" in lines
    first, second = read_rows(find_run(tmp_path) / "rows.jsonl")
    assert first["source"] == first["evaluated_source"] == second["source"] == SOURCE
    assert second["evaluated_source"] == "0123456789ab"
