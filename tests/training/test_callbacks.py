"""What a run writes while it trains: metrics.csv, TensorBoard and Weights & Biases."""

import signal
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.diagnostic_files import lines, train
from support.extension_files import trained
from support.tiny_run import tiny

from eltlab.common.errors import UserError
from eltlab.common.signals import Requests, Stopped
from eltlab.training.callbacks import Agreement, CheckpointWriter, MetricsWriter, truncate_csv


def test_the_gap_of_student_and_teacher_is_logged(tmp_path):
    run = train(tmp_path, "supervision=ilsd")
    rows = lines(run.folder / "metrics.csv")
    assert len(rows) == 8
    for row in rows:
        student = row[f"loss_exit_{row['student']:.0f}"]
        assert row["gap"] == pytest.approx(student - row["loss_exit_4"], abs=1e-5)
        assert all(row[f"update_{n}"] > 0 for n in (1, 2, 3, 4))


def test_random_depth_logs_the_loops_of_its_passes(tmp_path):
    run = train(tmp_path, "supervision=random_depth")
    for row in lines(run.folder / "metrics.csv"):
        depth = int(row["depth"])
        assert f"loss_exit_{depth}" in row
        assert [f"update_{n}" in row for n in (1, 2, 3, 4)] == [n <= depth for n in (1, 2, 3, 4)]


def test_a_model_whose_loops_all_count_is_not_called_collapsed(tmp_path, capsys):
    train(tmp_path, "supervision=ilsd")
    assert "collapsed" not in capsys.readouterr().err


@pytest.mark.parametrize(("step", "warned"), [(8, True), (4, False)])
def test_a_collapsed_model_is_named_when_training_ends(tmp_path, capsys, step, warned):
    """With the updates of a run that collapsed; a run that was stopped is not judged yet."""
    config = tiny()
    writer = MetricsWriter(tmp_path, config)
    writer.updates = {1: 3.08, 2: 0.17, 3: 0.12, 4: 0.10}
    writer.on_train_end(None, SimpleNamespace(step=step, config=config))
    error = capsys.readouterr().err
    assert error.startswith("warning: collapsed onto the first loop") is warned
    assert len(error.splitlines()) == warned


def test_wandb_gets_what_metrics_csv_gets(tmp_path, monkeypatch):
    """Calls are recorded by a stub, because wandb has two dozen dependencies."""
    calls = []

    class Recorder:
        def log(self, row, step):
            calls.append((step, row))

        def finish(self):
            calls.append("finish")

    stand_in = SimpleNamespace(
        __spec__=ModuleSpec("wandb", None, origin="stand-in"),
        Settings=lambda **given: given,
        init=lambda **given: calls.append(given) or Recorder(),
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    run = train(tmp_path, "trainer.wandb=true")
    started, *logged, last = calls
    assert (
        started["id"] == f"{run.config.name}-{run.folder.name}"
        and started["resume"] == "allow"
        and last == "finish"
    )
    assert started["config"]["optim.lr"] == run.config.optim.lr
    written = lines(run.folder / "metrics.csv")
    assert [step for step, _ in logged] == [row["step"] for row in written]
    for (_, row), line in zip(logged, written, strict=True):
        assert row == pytest.approx(line)


@pytest.mark.integration  # wandb starts a process
def test_the_real_wandb_logs_the_run(tmp_path, monkeypatch):
    """Offline, if wandb is installed: reads back what it wrote to disk."""
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tmp_path, "trainer.wandb=true")
    [written] = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    assert run.folder.name in written.name
    content = written.read_bytes()
    for name in (b"loss_exit_4", b"update_1", b"images_per_second"):
        assert name in content


def test_wandb_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    def refuse(**given):
        raise RuntimeError("no API key\nconfigured")

    stand_in = SimpleNamespace(
        __spec__=ModuleSpec("wandb", None, origin="stand-in"), Settings=dict, init=refuse
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    with pytest.raises(UserError, match="no API key configured"):
        train(tmp_path, "trainer.wandb=true")


def test_log_terms_of_an_extension_do_not_stop_the_run(extension_files: Path, tmp_path: Path) -> None:
    source = (extension_files / "chain.py").read_text()
    named = source.replace('{"loss": total,', '{"my_term": total,')
    assert named != source
    (tmp_path / "named.py").write_text(named)
    run = trained(tmp_path, tmp_path / "runs", "supervision={}/named.py", "evaluate=false")
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_one_rank_is_answered_at_once() -> None:
    agreement = Agreement()
    assert not agreement.agree(False) and agreement.agree(True) and not agreement.wait_for_answer()


def test_several_ranks_are_answered_one_step_later_with_the_largest_request(monkeypatch) -> None:
    """The other rank requests 2 in the first step and nothing afterwards."""
    others = iter([2, 0])

    def all_reduce(value, op, group, async_op):
        value.clamp_(min=next(others))
        return SimpleNamespace(wait=lambda: None)

    agreement = Agreement()
    agreement.group = "two ranks"
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    assert [agreement.agree(request) for request in (0, 1)] == [0, 2]
    assert agreement.wait_for_answer() == 1


def test_a_signal_saves_once_and_stops(tmp_path, monkeypatch) -> None:
    writer = CheckpointWriter(tmp_path / "last.ckpt", seconds=600.0, signals=Requests(deferred=True))
    writer.agreement, saved = Agreement(), []
    trainer = SimpleNamespace(save_checkpoint=lambda path: saved.append(Path(path).write_text("weights")))
    module = SimpleNamespace(step=3, config=SimpleNamespace(steps=8), images_seen=24)
    writer.after_step(trainer, module)
    assert not saved
    writer.signals(signal.SIGTERM, None)
    with pytest.raises(Stopped, match="stopped by SIGTERM at 24 images"):
        writer.after_step(trainer, module)
    assert len(saved) == 1 and (tmp_path / "last.ckpt").read_text() == "weights"


def test_metrics_after_the_checkpoint_are_removed_and_so_is_a_torn_line(tmp_path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss\n1,0.5\n2,0.4\n3,0.3\n4")
    truncate_csv(file, ["step", "loss"], 2)
    assert file.read_text().splitlines() == ["step,loss", "1,0.5", "2,0.4"]


def test_metrics_hold_every_exit_the_weight_and_the_updates(tmp_path: Path) -> None:
    run = train(tmp_path, "budget.images=160", "trainer.log_every=5", "trainer.validations=0")
    rows = lines(run.folder / "metrics.csv")
    assert [row["images"] for row in rows] == [40, 80, 120, 160]
    for exit_ in range(1, 5):
        assert any(f"loss_exit_{exit_}" in row for row in rows), exit_
        assert all(row[f"update_{exit_}"] > 0 for row in rows)
    weights = [row["weight"] for row in rows]
    assert weights == sorted(weights, reverse=True) and weights[0] < 1 and weights[-1] > 0
    assert all(1 <= row["student"] <= 3 for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)
    assert list((run.folder / "tensorboard").glob("events.*"))
