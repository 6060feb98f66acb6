"""Jobs: what SLURM gets, how they are queued again, and when there is nothing to submit."""

import os
import signal
import sys
from pathlib import Path

import pytest
from support.slurm import LOCAL, MANY, text
from support.small_studies import written
from support.tiny_run import TINY, tiny

from eltlab import cluster, fit, sweep
from eltlab.common.errors import UserError
from eltlab.config.schema import SlurmConfig
from eltlab.training.train import strategy_arguments


@pytest.mark.integration
def test_a_run_with_a_missing_measurement_is_not_finished(tmp_path: Path) -> None:
    overrides = [*TINY, f"runs_dir={tmp_path}", "trainer.grids=0", "evaluate_loops=[1,2]"]
    fit.main(overrides)
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


def test_a_storage_that_did_not_come_with_the_job_is_reported(monkeypatch) -> None:
    monkeypatch.delenv("ELTLAB_STORAGE", raising=False)
    with pytest.raises(UserError, match="ELTLAB_STORAGE did not come with the job"):
        cluster.WorkerJob(["loops_vs_depth"], "postgresql://me:***@host/sweeps").work()


def test_jobs_that_share_a_journal_get_a_warning(tmp_path, monkeypatch, capsys) -> None:
    calls = []
    monkeypatch.setattr(cluster, "submit", lambda *given: calls.append(given))
    file = written(tmp_path, "space:\n  loops: [2, 4]\nseeds: [0]\n")
    command = [file, f"runs_dir={tmp_path / 'runs'}", *LOCAL, "trainer.slurm.hours=3"]
    sweep.main([*command, "workers=9"])
    assert "only if the file system's locks (flock)" in capsys.readouterr().err
    [(jobs, folder, slurm, resources)] = calls
    assert len(jobs) == 2  # no more than there are trials
    assert jobs[0].arguments == command[:2] and jobs[0].storage is None
    assert folder == tmp_path / "runs" / "small" / "slurm"
    assert (slurm.hours, resources["timeout_min"], resources["name"]) == (3, 180, "small")
    assert "gpus_per_node" not in resources  # trainer.accelerator=cpu in the file


# --- what SLURM gets and answers ------------------------------------------------------------------


@pytest.mark.integration
def test_sbatch_gets_the_requested_resources(slurm, tmp_path, capsys) -> None:
    overrides = [*TINY, *MANY, "trainer=slurm", f"runs_dir={tmp_path / 'runs'}", "name=a/b"]
    overrides += ["trainer.slurm.hours=1.5", "trainer.slurm.memory=64", "trainer.slurm.cpus_per_task=6"]
    overrides += ["trainer.slurm.partition=gpu", "trainer.slurm.account=vision"]
    overrides += ["trainer.slurm.qos=low", "trainer.slurm.constraint=h100"]
    fit.main([*overrides, "trainer.slurm.signal_seconds=120"])
    printed = capsys.readouterr()
    assert "submitted: 77\n" in printed.err and "scancel 77 ends it" in printed.err
    run = Path(printed.out.removeprefix("run: ").strip())
    script = (run / "slurm" / "77_submission.sh").read_text()
    submitted = {line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line}
    expected = {"nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=6", "time=90"}
    expected |= {"mem=64GB", "partition=gpu", "account=vision", "qos=low", "constraint=h100"}
    expected |= {"signal=USR2@120", "requeue", "open-mode=append", "job-name=a-b"}
    assert expected <= submitted
    [task] = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "--cpus-per-task=6" in task and "--kill-on-bad-exit=1" in task
    assert (run / "slurm" / "77_submitted.pkl").is_file()


@pytest.mark.integration
def test_an_array_is_one_job_of_slurm(slurm, tmp_path, capsys) -> None:
    jobs = [cluster.WorkerJob(["a"], None)] * 3
    resources = cluster.job_resources(tiny(), 1, 1)
    assert cluster.submit(jobs, tmp_path, SlurmConfig(), resources) == ["77_0", "77_1", "77_2"]
    assert "#SBATCH --array=0-2%3" in (tmp_path / "77_submission.sh").read_text()
    assert "scancel 77 ends it" in capsys.readouterr().err


@pytest.mark.integration
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
    exported = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
    for key in (*exported, "MASTER_PORT", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    # Lightning would detect SLURM here and requeue by itself.
    assert type(strategy_arguments(tiny())["plugins"]).__name__ == "LightningEnvironment"
    cluster.export_ranks()
    assert [os.environ[key] for key in exported] == ["3", "4", "1", "2", "1", "n3"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    launched = strategy_arguments(tiny())["plugins"]
    assert type(launched).__name__ == "TorchElasticEnvironment"
    assert (launched.global_rank(), launched.local_rank(), launched.node_rank()) == (3, 1, 1)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("squeue", "scontrol", "rank", "requeued", "message"),
    [
        ("echo RUNNING", "true", "0", True, ""),
        ("exit 1", "true", "0", True, ""),  # squeue does not answer
        ("echo COMPLETING", "true", "0", False, "SLURM is ending it"),  # scancel
        ("echo RUNNING", "exit 1", "0", True, "not queued again"),
        ("echo RUNNING", "true", "1", False, ""),  # rank 0 does it for all
    ],
)
def test_a_stopped_job_is_queued_again_unless_slurm_is_ending_it(
    slurm, tmp_path, monkeypatch, capsys, squeue, scontrol, rank, requeued, message
) -> None:
    calls = tmp_path / "calls"
    slurm("squeue", squeue)
    slurm("scontrol", f'echo "$@" > {calls}; {scontrol}')
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
    assert text(calls) == ("requeue 77\n" if requeued else "")
    printed = capsys.readouterr().err
    assert printed.startswith("stopped by SIGTERM\n") and message in printed


def test_a_mistake_in_a_job_is_one_line(capsys) -> None:
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        with pytest.raises(SystemExit) as end:
            cluster.FitJob("a: [").__call__()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: the job's configuration is not")


def test_without_submitit_its_installation_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'eltlab\[slurm\]'"):
        fit.main([*TINY, *LOCAL, f"runs_dir={tmp_path / 'runs'}"])
