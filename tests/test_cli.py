"""Command lines as keys: mistakes are one line, and a URL is not split."""

from pathlib import Path

import pytest
from support.command_line import everything, typed_in
from support.storage_urls import URL

from eltlab import evaluate, sample
from eltlab.cli import study_keys
from eltlab.studies.study_file import SweepKeys

RUN_MISTAKES = [
    (evaluate, [], "run=DIR is missing"),
    (evaluate, ["run=nowhere"], "run=nowhere: no config.yaml there"),
    (evaluate, ["run={run}", "loops=0"], "loops=0: give an integer of at least 1"),
    (evaluate, ["run={run}", "loops=[1,two]"], "loops=two: give an integer of at least 1"),
    (evaluate, ["run={run}", "loops=[4to0]"], "loops=4to0: give an integer of at least 1"),
    (evaluate, ["run={run}", "sampler.halting=-1"], "sampler.halting=-1.0: must be above 0"),
    (evaluate, ["run={run}", "loops=[]"], "loops=[]"),
    (evaluate, ["run={run}", "loops=[[1,2]]"], "loops=[1, 2] has 2 entries but sampler.steps=4"),
    (evaluate, ["run={run}", "loops=[[]]"], "loops=[]: give an integer of at least 1"),
    (evaluate, ["run={run}", "batch_size=7"], "batch_size=7: not a key of a trained run"),
    (evaluate, ["run={run}", "samples=5"], "error: samples=5: give at least two per class, 20"),
    (evaluate, ["run={run}", "samples=100001"], "give at most 100,000"),
    (evaluate, ["run={run}", "samples=many"], "samples=many"),
    (evaluate, ["run={run}", "seed=-1"], "seed=-1: must be at least 0"),
    (evaluate, ["run={run}\n"], "\\n: no config.yaml there"),
    (evaluate, ["run={run}", "sample=5"], "did you mean samples?"),
    (evaluate, ["run={run}", "optim.lr=1"], "optim.lr=1: not a key of a trained run"),
    (evaluate, ["run={run}", "sampler.steps=0"], "sampler.steps=0: must be at least 1"),
    (evaluate, ["run={run}", "sampler.guidance=[1,-2]"], "sampler.guidance=-2.0: must be at least 0"),
    (evaluate, ["run={run}", "sampler.guidance=[1,two]"], "sampler.guidance=two: Value 'two'"),
    (evaluate, ["run={run}", "sampler.guidance=[]"], "sampler.guidance=[]: empty; give at least one value"),
    (evaluate, ["run={run}", "sampler.steps=[4,0]"], "sampler.steps=0: must be at least 1"),
    (evaluate, ["run={run}", "sampler.steps=[4,2]", "loops=[[1,1,2,2]]"], "but sampler.steps=2"),
    (evaluate, ["run={run}", "sampler.clip=[true]"], "sampler.clip=[True]"),
    (sample, ["run={run}", "sampler.guidance=[1,2]"], "sampler.guidance=[1, 2]"),
    (sample, ["run={run}", "count=0"], "count=0: must be in [1, 4096]"),
    (sample, ["run={run}", "labels=[10]"], "labels=[10]: give classes 0 to 9"),
    (sample, ["run={run}", "labels=[true]"], "labels=[True]: give classes 0 to 9"),
    (sample, ["run={run}", "seed=-1"], "seed=-1: must be at least 0"),
    (
        sample,
        ["run={run}", "count='1\n2'"],
        "count=1\\n2: Value '1\\n2' of type 'str' could not be",
    ),
    (sample, ["run={run}", "loops=[[1,2]]"], "loops=[1, 2] has 2 entries but sampler.steps=4"),
    (sample, ["run={run}", "loops=[1,2,4]", "count=2000"], "give at most 1365"),
    (sample, ["run={run}", "out=/dev/null/grid.png"], "/dev/null"),
    (sample, ["run={run}", "out=grid.jpg"], "end the name in .png"),
]


@pytest.mark.parametrize(("verb", "arguments", "message"), RUN_MISTAKES)
def test_mistake_about_a_run_is_one_line_and_changes_nothing(
    verb: object,
    arguments: list[str],
    message: str,
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(trained_run)
    filled = [argument.format(run=trained_run) for argument in arguments]
    assert typed_in(verb, filled, monkeypatch) == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("error: ") and message in line
    assert printed.out == "" and everything(trained_run) == before and list(tmp_path.iterdir()) == []


def test_a_url_is_everything_after_storage(monkeypatch):
    """Also with a query, which the grammar of fit's overrides would split."""
    given = ["small", f"storage={URL}", "workers=2"]
    assert study_keys(given, SweepKeys())[1].storage == URL
    assert study_keys(["small", "storage=null"], SweepKeys())[1].storage is None
    monkeypatch.setenv("ELTLAB_STORAGE", URL)
    assert study_keys(["small"], SweepKeys())[1].storage == URL
    assert study_keys(["small", "storage="], SweepKeys())[1].storage is None
