"""How a run is trained: the Trainer's strategy, the order of its callbacks and what it resumes from."""

import shutil
from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy
from support.image_files import small
from support.tiny_run import TINY, find_run, tiny

from eltlab import fit
from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.package_info import SOURCE
from eltlab.common.signals import Requests
from eltlab.evaluation.prepare_run import prepare
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.training.callbacks import CheckpointWriter, MetricsWriter
from eltlab.training.sharding import ShardedStrategy
from eltlab.training.train import build_callbacks, check_data, check_resumable, strategy_arguments, train
from eltlab.training.validation import Validation


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)


def test_one_process_has_no_strategy() -> None:
    assert "strategy" not in strategy_arguments(tiny("trainer.strategy=fsdp"))


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        ([], False),
        (["model.inject_input=true"], False),  # the teacher of ilsd runs all loops
        (["model.inject_input=true", "supervision=random_depth"], True),
    ],
)
def test_ddp_looks_for_unused_parameters_only_if_there_can_be_some(
    two_ranks: None, overrides: list[str], unused: bool
) -> None:
    strategy = strategy_arguments(tiny(*overrides))["strategy"]
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs["find_unused_parameters"] is unused


def test_fsdp_shards(two_ranks: None) -> None:
    assert isinstance(strategy_arguments(tiny("trainer.strategy=fsdp"))["strategy"], ShardedStrategy)


def test_the_checkpoint_is_written_after_all_other_files(tmp_path: Path) -> None:
    """A run that is killed between them resumes from a checkpoint that is not ahead of its files."""
    for overrides, validates in (((), True), (("trainer.validations=0",), False)):
        prepared = prepare(tiny(*overrides, "evaluate=false", f"runs_dir={tmp_path}"))
        assert prepared.data is not None
        first, *rest, last = build_callbacks(prepared, prepared.data, Requests())
        assert isinstance(first, MetricsWriter) and isinstance(last, CheckpointWriter)
        assert any(isinstance(callback, Validation) for callback in rest) is validates


def test_a_run_does_not_resume_in_another_precision_or_with_other_images() -> None:
    counters, config = {"precision": "32-true", "source": SOURCE}, tiny()
    check_resumable(counters, "32-true", config)
    check_data("abc", "abc", config)
    with pytest.raises(UserError, match=r"started in 32-true; continue with trainer.precision=32-true"):
        check_resumable(counters, "bf16-mixed", config)
    with pytest.raises(UserError, match="started with different images"):
        check_data("abc", "other", config)


def test_a_run_is_found_from_a_copy_of_its_images_and_refuses_others(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster may copy a set to another folder for each job. An equal name says nothing about content."""
    keys = ["evaluate=false", "trainer.grids=0", "trainer.validations=0", f"runs_dir={tmp_path / 'runs'}"]

    def prepared(root: Path):
        return prepare(small(root, "objective=diffusion", *keys))

    train(prepared(image_folder), Requests())
    copy, other = (tmp_path / name / image_folder.name for name in ("job1", "job2"))
    shutil.copytree(image_folder, copy)
    train(prepared(copy), Requests())
    assert "finished before" in capsys.readouterr().err
    shutil.copytree(image_folder, other)
    shutil.copy(other / "train/a/1.png", other / "train/a/0.png")
    with pytest.raises(UserError, match="started with different images"):
        train(prepared(other), Requests())


@pytest.mark.parametrize(("source", "named"), [("0123456789ab", "0123456789ab"), (None, "unknown")])
def test_a_run_does_not_resume_under_another_source(source: str | None, named: str) -> None:
    """A checkpoint of a version that stored no source is of another one."""
    counters = {"precision": "32-true", "source": source, "code": "0.0.9-abc"}
    message = (
        rf"started by eltlab 0.0.9-abc \(source {named}\), and this is eltlab .* \(source {SOURCE}\); restore"
    )
    with pytest.raises(UserError, match=message):
        check_resumable(counters, "32-true", tiny())


def test_an_interrupted_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, "evaluate=false", "trainer.grids=0", "trainer.validations=0", f"runs_dir={tmp_path}"]
    after_step = CheckpointWriter.after_step

    def interrupted(self, trainer, module) -> None:
        after_step(self, trainer, module)
        if module.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit.main([*overrides, "trainer.checkpoint_seconds=0"])
    checkpoint = find_run(tmp_path) / "checkpoints" / "last.ckpt"
    assert read_checkpoint(checkpoint)["eltlab"]["step"] == 3
    capsys.readouterr()
    fit.main(overrides)
    assert "resumed at 24 images" in capsys.readouterr().err
    assert read_checkpoint(checkpoint)["eltlab"]["step"] == 8


@pytest.mark.integration
def test_only_the_main_process_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(f"runs_dir={tmp_path}", "trainer.checkpoint_seconds=0", "trainer.log_every=1")
    prepared = prepare(config)
    monkeypatch.setattr(ranks, "is_main_process", lambda: False)
    train(prepared, Requests())
    # Lightning decides who writes the checkpoint, and for Lightning this is rank 0.
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"last.ckpt"}
    prepared.run.checkpoint.unlink()
    monkeypatch.setattr(ranks, "is_main_process", lambda: True)
    train(prepared, Requests())
    names = {path.name for path in prepared.run.folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv", "validation.csv", "last.ckpt"} <= names
