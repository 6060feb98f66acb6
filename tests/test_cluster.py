"""Jobs through submitit: its local executor with real signals, and what SLURM would get."""

import os
import pickle
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, tiny, until
from optuna.trial import TrialState
from studies import written
from test_runs import assert_same
from test_stopping import weights_rows_metrics

from eltlab import cluster, fit, sweep
from eltlab.common.errors import UserError
from eltlab.config.schema import SlurmConfig
from eltlab.studies.storage import open_storage
from eltlab.studies.study import load_study
from eltlab.studies.trial_queue import TrialQueue
from eltlab.training.train import strategy_arguments

LOCAL = ["trainer=slurm", "trainer.slurm.cluster=local"]
ASKED = [*TINY, "budget.images=3200", "trainer.checkpoint_seconds=1000", "trainer.grids=0"]
ASKED += ["trainer.validations=4", "model.dropout=0.1", "evaluate_loops=[4]"]


def text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def children(process: int) -> list[int]:
    """The job's tasks: the children of the local executor's controller, whose pid is the job's id."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(pid) for pid in listed.split()]


def ids(said: str) -> list[str]:
    found = re.search(r"submitted: (.*)", said)
    assert found is not None, said
    return found[1].split(", ")


# --- runs -----------------------------------------------------------------------------------------


def test_a_job_that_is_stopped_is_queued_again_and_ends_as_if_undisturbed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main([*ASKED, f"runs_dir={tmp_path / 'calm'}"])
    runs = tmp_path / "runs"
    capsys.readouterr()
    fit.main([*ASKED, *LOCAL, f"runs_dir={runs}"])
    printed = capsys.readouterr()
    [job] = ids(printed.err)
    run = Path(printed.out.removeprefix("run: ").strip())
    log = run / "slurm" / f"{job}_0_log.out"
    assert f"tail -F {log}" in printed.err
    until(lambda: len(text(run / "metrics.csv").splitlines()) > 2, log=log)
    with pytest.raises(UserError, match="another process is training it"):
        fit.main([*ASKED, *LOCAL, f"runs_dir={runs}"])
    os.kill(int(job), signal.SIGTERM)  # submitit passes it on to the job's task
    until(lambda: "resumed at" in text(log), log=log)
    kept = len(text(run / "metrics.csv").splitlines())
    until(lambda: len(text(run / "metrics.csv").splitlines()) > kept + 1, log=log)
    [task] = children(int(job))
    os.kill(task, signal.SIGUSR2)
    until((run / "slurm" / f"{job}_0_result.pkl").is_file, log=log)
    said = log.read_text()
    stops = re.findall(r"stopped by (\w+) at (\S+) images", said)
    assert [name for name, _ in stops] == ["SIGTERM", "SIGUSR2"], said
    assert re.findall(r"resumed at (\S+) images", said) == [images for _, images in stops]
    assert pickle.loads((run / "slurm" / f"{job}_0_result.pkl").read_bytes()) == ("success", None)
    assert_same(weights_rows_metrics(tmp_path / "calm"), weights_rows_metrics(runs))
    capsys.readouterr()
    fit.main([*ASKED, *LOCAL, f"runs_dir={runs}"])
    printed = capsys.readouterr()
    assert printed.err == "finished before, at 3,200 images\n" and str(run) in printed.out


def test_a_run_with_a_missing_measurement_is_not_finished(tmp_path: Path) -> None:
    asked = [*TINY, f"runs_dir={tmp_path}", "trainer.grids=0", "evaluate_loops=[1,2]"]
    fit.main(asked)
    for more, done in (
        ((), True),
        (("trainer.log_every=9",), True),
        (("evaluate_loops=[4]",), False),
        (("sampler.loops=4to1",), False),
        (("metrics.samples=30",), False),
        (("metrics.samples=30", "evaluate=false"), True),
        (("seed=1",), False),
    ):
        config = tiny(f"runs_dir={tmp_path}", "evaluate_loops=[1,2]", *more)
        assert cluster.is_finished(cluster.Run.of(config)) is done, more


# --- studies --------------------------------------------------------------------------------------


def test_workers_in_jobs_finish_a_study_on_postgresql(
    postgres: Callable[[], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two jobs is stopped by a signal to all its processes: its trial is released, not failed."""
    study_text = "space:\n  optim.lr: [0.001, 0.002, 0.003]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=800", "evaluate_loops=[4]"]
    file, runs, url = written(tmp_path, study_text), tmp_path / "runs", postgres()
    command = [file, *more, f"runs_dir={runs}", f"storage={url}"]
    sweep.main([*command, *LOCAL, "workers=2"])
    printed = capsys.readouterr()
    jobs = ids(printed.err)
    assert len(jobs) == 2 and "journal" not in printed.err
    study = load_study(file, None, more, str(runs), {})
    logs = [study.folder / "slurm" / f"{job}_0_log.out" for job in jobs]

    def trial() -> list[int]:
        [*task] = children(int(jobs[0]))
        return [*task, *children(task[0])] if task else []

    until(lambda: len(trial()) == 2 and any(runs.rglob("metrics.csv")), log=logs[0])
    for process in reversed(trial()):
        os.kill(process, signal.SIGUSR2)
    until(lambda: "stopped by SIGUSR2" in text(logs[0]), log=logs[0])
    sweep.main([*command, "workers=0"])
    printed = capsys.readouterr()
    assert "lr0.001" in printed.out and printed.out.splitlines()[-1] == f"study: {study.folder}"
    storage = open_storage(url, study.folder, study=study.name)
    trials = TrialQueue(study, storage, "me", 60.0).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    results = [log.with_name(log.name.replace("log.out", "result.pkl")) for log in logs]
    until(lambda: all(result.is_file() for result in results))
    assert "Requeued job" in logs[0].read_text()
    for path in (study.folder / "slurm").iterdir():  # the password is in none of them
        assert b"s3cret" not in path.read_bytes()


def test_a_storage_that_did_not_come_with_the_job_is_reported(monkeypatch) -> None:
    monkeypatch.delenv("ELTLAB_STORAGE", raising=False)
    with pytest.raises(UserError, match="ELTLAB_STORAGE did not come with the job"):
        cluster.WorkerJob(["loops_vs_depth"], "postgresql://me:***@host/sweeps").work()


def test_jobs_that_share_a_journal_get_a_warning(tmp_path, monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr(cluster, "submit", lambda *given: asked.append(given))
    file = written(tmp_path, "space:\n  loops: [2, 4]\nseeds: [0]\n")
    command = [file, f"runs_dir={tmp_path / 'runs'}", *LOCAL, "trainer.slurm.hours=3"]
    sweep.main([*command, "workers=9"])
    assert "only if the file system's locks (flock)" in capsys.readouterr().err
    [(jobs, folder, slurm, wanted)] = asked
    assert len(jobs) == 2  # no more than there are trials
    assert jobs[0].arguments == command[:2] and jobs[0].storage is None
    assert folder == tmp_path / "runs" / "small" / "slurm"
    assert (slurm.hours, wanted["timeout_min"], wanted["name"]) == (3, 180, "small")
    assert "gpus_per_node" not in wanted  # trainer.accelerator=cpu in the file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer=slurm"], "trainer=slurm: give the number of jobs, e.g. workers=8"),
        (["trainer=slurm", "workers=0"], "give the number of jobs"),
        (["trainer=slurm", "workers=2", "storage=sqlite:///a.db"], "set storage=postgresql://"),
        (["trainer=slurm", "workers=2"], "no sbatch here"),
        (["workers=-1"], "workers=-1: must be at least 0"),
        (["trainer=slum"], "trainer=slum: did you mean slurm?"),
    ],
)
def test_mistakes_about_workers_in_jobs(tmp_path, monkeypatch, arguments, said) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = written(tmp_path, "space:\n  loops: [2, 4]\nseeds: [0]\n")
    with pytest.raises(UserError) as error:
        sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *arguments])
    assert said in str(error.value)


# --- what SLURM gets and answers ------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts stand-ins for SLURM's commands on the path: a name, and its shell script."""
    there = tmp_path / "bin"
    there.mkdir()
    monkeypatch.setenv("PATH", f"{there}:{os.environ['PATH']}")

    def command(name: str, does: str) -> None:
        (there / name).write_text(f"#!/bin/sh\n{does}\n")
        (there / name).chmod(0o755)

    command("srun", "true")
    command("sbatch", "echo Submitted batch job 77")
    return command


MANY = ["trainer.nodes=4", "trainer.devices=8", "trainer.accelerator=cuda", "batch_size=32"]


def test_sbatch_gets_the_requested_resources(slurm, tmp_path, capsys) -> None:
    asked = [*TINY, *MANY, "trainer=slurm", f"runs_dir={tmp_path / 'runs'}", "name=a/b"]
    asked += ["trainer.slurm.hours=1.5", "trainer.slurm.memory=64", "trainer.slurm.cpus_per_task=6"]
    asked += ["trainer.slurm.partition=gpu", "trainer.slurm.account=vision"]
    asked += ["trainer.slurm.qos=low", "trainer.slurm.constraint=h100"]
    fit.main([*asked, "trainer.slurm.signal_seconds=120"])
    printed = capsys.readouterr()
    assert "submitted: 77\n" in printed.err and "scancel 77 ends it" in printed.err
    run = Path(printed.out.removeprefix("run: ").strip())
    script = (run / "slurm" / "77_submission.sh").read_text()
    given = {line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line}
    wanted = {"nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=6", "time=90"}
    wanted |= {"mem=64GB", "partition=gpu", "account=vision", "qos=low", "constraint=h100"}
    wanted |= {"signal=USR2@120", "requeue", "open-mode=append", "job-name=a-b"}
    assert wanted <= given
    [task] = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "--cpus-per-task=6" in task and "--kill-on-bad-exit=1" in task
    assert (run / "slurm" / "77_submitted.pkl").is_file()


def test_an_array_is_one_job_of_slurm(slurm, tmp_path, capsys) -> None:
    jobs = [cluster.WorkerJob(["a"], None)] * 3
    asked = cluster.job_resources(tiny(), 1, 1)
    assert cluster.submit(jobs, tmp_path, SlurmConfig(), asked) == ["77_0", "77_1", "77_2"]
    assert "#SBATCH --array=0-2%3" in (tmp_path / "77_submission.sh").read_text()
    assert "scancel 77 ends it" in capsys.readouterr().err


def test_what_sbatch_refuses_is_one_line(slurm, tmp_path) -> None:
    slurm("sbatch", "echo sbatch: error: invalid partition specified: gpu >&2; exit 1")
    with pytest.raises(UserError, match=r"the cluster refused the job: .*invalid partition") as error:
        fit.main([*TINY, "trainer=slurm", f"runs_dir={tmp_path / 'runs'}"])
    assert len(str(error.value).splitlines()) == 1


def test_ranks_are_exported_as_torchruns_variables(monkeypatch) -> None:
    task = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[3-4]"}
    task |= {"SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1"}
    task |= {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    for key, value in task.items():
        monkeypatch.setenv(key, value)
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
    for key in (*told, "MASTER_PORT", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    # Lightning would detect SLURM here and requeue by itself.
    assert type(strategy_arguments(tiny())["plugins"]).__name__ == "LightningEnvironment"
    cluster.export_ranks()
    assert [os.environ[key] for key in told] == ["3", "4", "1", "2", "1", "n3"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    launched = strategy_arguments(tiny())["plugins"]
    assert type(launched).__name__ == "TorchElasticEnvironment"
    assert (launched.global_rank(), launched.local_rank(), launched.node_rank()) == (3, 1, 1)


@pytest.mark.parametrize(
    ("squeue", "scontrol", "rank", "requeued", "said"),
    [
        ("echo RUNNING", "true", "0", True, ""),
        ("exit 1", "true", "0", True, ""),  # squeue does not answer
        ("echo COMPLETING", "true", "0", False, "SLURM is ending it"),  # scancel
        ("echo RUNNING", "exit 1", "0", True, "not queued again"),
        ("echo RUNNING", "true", "1", False, ""),  # rank 0 does it for all
    ],
)
def test_a_stopped_job_is_queued_again_unless_slurm_is_ending_it(
    slurm, tmp_path, monkeypatch, capsys, squeue, scontrol, rank, requeued, said
) -> None:
    asked = tmp_path / "asked"
    slurm("squeue", squeue)
    slurm("scontrol", f'echo "$@" > {asked}; {scontrol}')
    task = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "77", "SLURM_PROCID": rank}
    for key, value in task.items():
        monkeypatch.setenv(key, value)
    job = cluster.import_submitit().JobEnvironment()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: job._requeue(1))
    try:
        cluster.run_in_job(lambda: signal.raise_signal(signal.SIGTERM))
    except SystemExit as end:
        assert end.code == 143
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert text(asked) == ("requeue 77\n" if requeued else "")
    printed = capsys.readouterr().err
    assert printed.startswith("stopped by SIGTERM\n") and said in printed


def test_a_mistake_in_a_job_is_one_line(capsys) -> None:
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        with pytest.raises(SystemExit) as end:
            cluster.FitJob("a: [").__call__()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: the job's configuration is not")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("trainer=slurm", "no sbatch here; submit on a login node"),
        ("trainer.name=slurm", "chosen by its group; write trainer=slurm"),
        ("trainer.slurm.cluster=here", "trainer.slurm.cluster=here: choose one of slurm, local"),
        ("trainer.slurm.hours=0", "trainer.slurm.hours=0.0: shorter than"),
        ("trainer.nodes=0", "trainer.nodes=0: must be at least 1"),
        (" ".join([*LOCAL, "trainer.nodes=2"]), "trainer.nodes=2: trainer.slurm.cluster=local has"),
    ],
)
def test_mistakes_name_the_fix_and_leave_nothing(tmp_path, monkeypatch, asked, said) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        fit.main([*TINY, *asked.split(), f"runs_dir={tmp_path / 'runs'}"])
    assert said in str(error.value) and not list(tmp_path.iterdir())


def test_without_submitit_its_installation_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'eltlab\[slurm\]'"):
        fit.main([*TINY, *LOCAL, f"runs_dir={tmp_path / 'runs'}"])


def test_where_a_run_trains_is_not_part_of_its_identity() -> None:
    assert cluster.Run.of(tiny(*LOCAL, "trainer.slurm.hours=3")) != cluster.Run.of(tiny())
    assert cluster.Run.of(tiny("trainer=slurm", *MANY)).folder == cluster.Run.of(tiny(MANY[-1])).folder
