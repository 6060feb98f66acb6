"""Checkpoints that are missing, damaged or foreign are named, and nothing is changed."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from support.command_line import everything, typed_in
from support.tiny_run import find_run
from support.trained_run import UNMEASURED

from eltlab import evaluate, fit, sample


class Evil:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch evil",))


def checkpoint_mistakes(path: Path, kind: str) -> str:
    """Breaks the checkpoint in one way; returns the expected message."""
    if kind == "missing":
        path.unlink()
        return "no checkpoint there; train the run first"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return "truncated or not a checkpoint"
    if kind == "empty":
        path.write_bytes(b"")
        return "truncated or not a checkpoint"
    if kind == "unsafe":
        torch.save({"state_dict": Evil(), "eltlab": {}}, path)
        return "not safe to unpickle"
    if kind == "foreign":
        torch.save({"model": torch.zeros(1)}, path)
        return "not an eltlab checkpoint"
    checkpoint = torch.load(path, weights_only=True)
    version = checkpoint["eltlab"]["code"]
    if kind == "version":
        del checkpoint["eltlab"]["meter"]
        torch.save(checkpoint, path)
        return f"written by eltlab {version}, without meter; use the run with that version"
    checkpoint["eltlab"]["step"] = 1  # fit does not read the weights of a finished run
    checkpoint["state_dict"] = {k: v[..., :1] for k, v in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    return f"a checkpoint of another architecture, written by eltlab {version}: "


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "empty", "unsafe", "foreign", "version", "architecture"]
)
@pytest.mark.parametrize("verb", [evaluate, sample, fit])
def test_bad_checkpoint_is_named(
    kind: str,
    verb: object,
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if verb is fit and kind == "missing":
        pytest.skip("without a checkpoint, fit starts the run: that is no mistake")
    runs = tmp_path / "runs"
    shutil.copytree(trained_run.parents[1], runs)
    run = find_run(runs)
    message = checkpoint_mistakes(run / "checkpoints" / "last.ckpt", kind)
    monkeypatch.chdir(tmp_path)
    before = everything(runs)
    arguments = [*UNMEASURED, f"runs_dir={runs}"] if verb is fit else [f"run={run}"]
    assert typed_in(verb, arguments, monkeypatch) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert everything(runs) == before
    assert not (tmp_path / "evil").exists()
