"""Jobs on a cluster, through submitit: a run is one job, a study an array of workers.

A job that is stopped is queued again, and continues: a run resumes from its checkpoint, and a worker claims
the next trial.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eltlab.cli import study_keys
from eltlab.common.errors import UserError, first_line
from eltlab.common.signals import Stopped, listening
from eltlab.common.text import mask_password
from eltlab.config.keys import to_yaml
from eltlab.config.schema import Config, SlurmConfig
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.evaluation.prepare_run import check_wandb
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.compose_config import parse_config
from eltlab.runs.run_folder import Run
from eltlab.studies.study import Study, load_study
from eltlab.studies.study_file import PLACES, STORAGE_VARIABLE, SweepKeys

TIME_LIMITS = 100  # a job is not queued again after this many; pre-emptions do not count


def import_submitit() -> Any:
    """Returns the package submitit. Raises UserError if it is not installed."""
    # submitit reads this at import, here and in the job; a cluster may have set a different signal.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR2"
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "trainer=slurm: the package submitit is not installed; pip install 'eltlab[slurm]'"
        ) from error
    return submitit


def check_cluster(slurm: SlurmConfig) -> None:
    """Raises UserError if no job can be submitted."""
    import_submitit()
    if slurm.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "trainer=slurm: no sbatch here; submit on a login node of the cluster, or try it out on this "
            "machine by trainer.slurm.cluster=local"
        )


# --- submitting -----------------------------------------------------------------------------------


def submit_fit(config: Config) -> None:
    """Submits a run as one job, unless it is finished or being trained. Raises UserError."""
    run, trainer = Run.of(config), config.trainer
    check_wandb(config)
    check_cluster(trainer.slurm)
    if is_finished(run):
        print(f"finished before, at {config.images:,} images", file=sys.stderr)
    else:
        # Jobs that wait hold no lock: if there are two, the one that starts second finds the run locked.
        with run.lock():
            pass
        resources = job_resources(config, trainer.nodes, trainer.devices)
        submit([FitJob(to_yaml(config))], run.folder / "slurm", trainer.slurm, resources)
    print(f"run: {run.folder}")


def submit_workers(
    study: Study, keys: SweepKeys, slurm: SlurmConfig, count: int, arguments: list[str]
) -> None:
    """Submits the workers of a study as an array of jobs. Raises UserError."""
    check_cluster(slurm)
    # The URL may hold a password. Everyone can read a job's script and command, but not its environment.
    variables = {} if keys.storage is None else {STORAGE_VARIABLE: keys.storage}
    if keys.storage is None:
        print(
            f"storage: the journal in {study.folder} serves many machines only if the file system's "
            "locks (flock) reach all of them; else set storage=postgresql://…",
            file=sys.stderr,
        )
    rest = [text for text in arguments if not text.startswith(("storage=", "workers=", "retry=", *PLACES))]
    job = WorkerJob(rest, None if keys.storage is None else mask_password(keys.storage))
    config = replace(study.base, name=study.name, trainer=replace(study.base.trainer, slurm=slurm))
    with import_submitit().helpers.environment_variables(**variables):
        submit([job] * count, study.folder / "slurm", slurm, job_resources(config, 1, 1))
    print("workers=0 in place of trainer=slurm watches them and writes the table", file=sys.stderr)
    print(f"study: {study.folder}")


def submit(jobs: "Sequence[Job]", folder: Path, slurm: SlurmConfig, resources: dict[str, Any]) -> list[str]:
    """Submits jobs, several as one array, with their logs in folder. Returns their ids. Raises UserError."""
    submitit = import_submitit()
    limits = {f"{cluster}_max_num_timeout": TIME_LIMITS for cluster in ("slurm", "local")}
    try:
        executor = submitit.AutoExecutor(folder, cluster=slurm.cluster, **limits)
        executor.update_parameters(**resources)
        with submitit.helpers.clean_env():  # otherwise a job submitted by a job inherits its settings
            ids = [str(job.job_id) for job in executor.submit_array(jobs)]
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        said = " ".join(str(error).split()) or first_line(error)
        raise UserError(f"the cluster refused the job: {said}") from error
    print(f"submitted: {', '.join(ids)}", file=sys.stderr)
    print(f"logs: tail -F {folder / ids[0]}_0_log.out", file=sys.stderr)
    if slurm.cluster == "slurm":
        array = ids[0].partition("_")[0]  # its number stands for all of its jobs
        print(f"squeue --job {array} shows, scancel {array} ends it", file=sys.stderr)
    return ids


def job_resources(config: Config, nodes: int, devices: int) -> dict[str, Any]:
    """The resources of a job as AutoExecutor takes them: one task per device."""
    slurm = config.trainer.slurm
    assert config.name is not None
    resources: dict[str, Any] = {
        "name": config.name.replace("/", "-"),
        "timeout_min": math.ceil(slurm.hours * 60),
        "nodes": nodes,
        "tasks_per_node": devices,
        "cpus_per_task": slurm.cpus_per_task,
        "stderr_to_stdout": True,
        "slurm_signal_delay_s": slurm.signal_seconds,
        # srun does not inherit cpus-per-task from sbatch (since SLURM 22.05). kill-on-bad-exit: a rank
        # that dies ends the job; otherwise the other ranks would wait for it until the job's time is up.
        "slurm_srun_args": [f"--cpus-per-task={slurm.cpus_per_task}", "--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True},  # a cluster's default may be not to
    }
    if config.trainer.accelerator != "cpu":
        resources["gpus_per_node"] = devices
    if slurm.memory is not None:
        resources["mem_gb"] = slurm.memory
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(slurm, key) is not None:
            resources[f"slurm_{key}"] = getattr(slurm, key)
    return resources


def is_finished(run: Run) -> bool:
    """Whether a job would find nothing to do."""
    return (
        run.checkpoint.is_file()
        and read_checkpoint(run.checkpoint)["eltlab"]["images_seen"] >= run.config.images
        and not left_to_measure(run)
    )


# --- in the job -----------------------------------------------------------------------------------


class Job:
    """Work that submitit pickles, loads in the job and calls there."""

    def work(self) -> None:
        raise NotImplementedError

    def __call__(self) -> None:
        run_in_job(self.work)

    def checkpoint(self) -> Any:
        """The job to queue again: the same one, because its run knows where it stopped."""
        return import_submitit().helpers.DelayedSubmission(self)


@dataclass
class FitJob(Job):
    """A run. It has the configuration of its submission, because conf/ may change meanwhile."""

    config: str

    def work(self) -> None:
        from eltlab.training.fit import fit

        config = parse_config(self.config, Path("the job's configuration"))
        export_ranks()
        fit(config)


@dataclass
class WorkerJob(Job):
    """A worker of a study, from the arguments of its command; the storage's URL is in the environment."""

    arguments: list[str]
    storage: str | None  # without its password

    def work(self) -> None:
        if self.storage is not None and not os.environ.get(STORAGE_VARIABLE):
            raise UserError(
                f"storage={self.storage}: {STORAGE_VARIABLE} did not come with the job; let sbatch pass the "
                "environment on (SBATCH_EXPORT or --export of this cluster removes it)"
            )
        from eltlab.studies.worker import run_worker

        name, keys, overrides = study_keys(self.arguments, SweepKeys())
        study = load_study(name, keys.preset, overrides, keys.runs_dir, keys.changes())
        run_worker(study, keys, workers=1)


def run_in_job(work: Callable[[], None]) -> None:
    """Does the work of a job, and queues the job again if it is stopped."""
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler
    assert callable(requeue)
    try:
        with listening():  # in place of submitit's handlers, which ignore SIGTERM
            work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        job = import_submitit().JobEnvironment()
        if job.global_rank == 0:  # all ranks are one job
            queue_again(job, lambda: requeue(signal.SIGUSR2, None), stop.code)


def queue_again(job: Any, requeue: Callable[[], Any], code: int) -> None:
    """Queues this job again and ends it.

    It is not queued if SLURM is ending it: after scancel it should not return, and if SLURM pre-empts it,
    SLURM requeues it by itself.
    """
    state = ""
    if job.cluster == "slurm":
        command = ["squeue", "--noheader", "--format=%T", "--jobs", job.job_id]
        with suppress(OSError, subprocess.SubprocessError):  # no answer: it is queued again
            state = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    if state.strip() == "COMPLETING":
        print(f"job {job.job_id}: SLURM is ending it; not queued again from here", file=sys.stderr)
        sys.exit(code)
    try:
        requeue()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"not queued again: {error}; the same command resumes the run", file=sys.stderr)
        sys.exit(code)


def export_ranks() -> None:
    """Exports this task's rank in torchrun's variables, so that a run knows only one kind of launch."""
    submitit = import_submitit()
    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return
    # A task sees all devices of its node and takes that of its local rank, as under torchrun.
    variables = submitit.helpers.TorchDistributedEnvironment()
    variables.export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["GROUP_RANK"] = str(job.node)
    os.environ["TORCHELASTIC_RUN_ID"] = job.job_id  # by this variable Lightning detects torchrun
