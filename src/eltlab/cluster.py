"""Jobs on a cluster, through submitit: submitted here, they do their work there, and one that is stopped
is queued again. A job's work knows nothing of it."""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eltlab.cli import study_keys
from eltlab.common.errors import UserError, first_line
from eltlab.common.signals import Stopped, listening
from eltlab.common.text import mask_password
from eltlab.config.flat import to_yaml
from eltlab.config.schema import Config, SlurmConfig
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.evaluation.prepare import check_wandb
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.composing import parse_config
from eltlab.runs.run_folder import Run
from eltlab.studies.local_workers import serve
from eltlab.studies.study import Study, load_study
from eltlab.studies.sweep_keys import STORAGE_VARIABLE, SweepKeys

# Where workers run, which is no part of what a study is.
PLACES = ("trainer=", "trainer.slurm.")

LIMITS = 100  # times that a job may reach its time limit; those that it is pre-empted do not count


def submitit() -> Any:
    """The package. Raises UserError where it is not installed."""
    # Before it is imported, here as in the job: a cluster may have set another.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR2"
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "trainer=slurm: the package submitit is not installed; pip install 'eltlab[slurm]'"
        ) from error
    return submitit


def check_cluster(slurm: SlurmConfig) -> None:
    """Raises UserError where no job can be submitted."""
    submitit()
    if slurm.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "trainer=slurm: no sbatch here; submit on a login node of the cluster, or try it out on this "
            "machine by trainer.slurm.cluster=local"
        )


def submit_fit(config: Config) -> None:
    """Submits a run as one job, unless it is finished or being trained. Raises UserError."""
    run, trainer = Run.of(config), config.trainer
    check_wandb(config)
    check_cluster(trainer.slurm)
    if is_finished(run):
        print(f"finished before, at {config.images:,} images", file=sys.stderr)
    else:
        with run.lock():  # a job that still waits is not seen: whichever comes second gives way
            pass
        job = FitJob(to_yaml(config))
        asked = resources(config, trainer.nodes, trainer.devices)
        submit([job], run.folder / "slurm", trainer.slurm, asked)
    print(f"run: {run.folder}")


def submit(
    jobs: "Sequence[Job]", folder: Path, slurm: SlurmConfig, asked: dict[str, Any]
) -> list[str]:
    """Submits jobs, several as one array, with their logs in folder; their ids. Raises UserError."""
    helpers = submitit().helpers
    limits = {f"{cluster}_max_num_timeout": LIMITS for cluster in ("slurm", "local")}
    try:
        executor = submitit().AutoExecutor(folder, cluster=slurm.cluster, **limits)
        executor.update_parameters(**asked)
        with helpers.clean_env():  # else a job that is submitted in another takes after that
            ids = [str(job.job_id) for job in executor.submit_array(jobs)]
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        said = " ".join(str(error).split()) or first_line(error)
        raise UserError(f"the cluster took no job: {said}") from error
    tell(ids, folder, slurm)
    return ids


def tell(ids: list[str], folder: Path, slurm: SlurmConfig) -> None:
    """How to watch jobs, and to end them."""
    print(f"submitted: {', '.join(ids)}", file=sys.stderr)
    print(f"logs: tail -F {folder / ids[0]}_0_log.out", file=sys.stderr)
    if slurm.cluster == "slurm":
        whole = ids[0].partition("_")[0]  # an array's number stands for all of it
        print(f"squeue --job {whole} shows, scancel {whole} ends it", file=sys.stderr)


def resources(config: Config, nodes: int, devices: int) -> dict[str, Any]:
    """What a job asks for, as AutoExecutor takes it: a task a device."""
    slurm = config.trainer.slurm
    assert config.name is not None
    asked: dict[str, Any] = {
        "name": config.name.replace("/", "-"),
        "timeout_min": math.ceil(slurm.hours * 60),
        "nodes": nodes,
        "tasks_per_node": devices,
        "cpus_per_task": slurm.cpus_per_task,
        "stderr_to_stdout": True,
        "slurm_signal_delay_s": slurm.signal_seconds,
        # Of the first, srun does not take it over from sbatch (since SLURM 22.05). Of the second: a rank
        # that dies ends the job, and the others do not wait for it until the job's time is up.
        "slurm_srun_args": [f"--cpus-per-task={slurm.cpus_per_task}", "--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True},  # where a cluster's default is not to
    }
    if config.trainer.accelerator != "cpu":
        asked["gpus_per_node"] = devices
    if slurm.memory is not None:
        asked["mem_gb"] = slurm.memory
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(slurm, key) is not None:
            asked[f"slurm_{key}"] = getattr(slurm, key)
    return asked


def is_finished(run: Run) -> bool:
    """Whether a job would find nothing to do. If that is not certain it is False: the job will see."""
    config = run.config
    if not run.checkpoint.is_file():
        return False
    if read_checkpoint(run.checkpoint)["eltlab"]["images_seen"] < config.images:
        return False
    return not left_to_measure(run)


class Job:
    """Work that submitit pickles, loads in the job and calls there."""

    def work(self) -> None:
        raise NotImplementedError

    def __call__(self) -> None:
        in_job(self.work)

    def checkpoint(self) -> Any:
        """What the job will be when it is queued again: the same, for its run knows where it stands."""
        return submitit().helpers.DelayedSubmission(self)


@dataclass
class FitJob(Job):
    """A run. Its configuration as it was when it was submitted: conf/ may change meanwhile."""

    config: str

    def work(self) -> None:
        from eltlab.training.fit import fit

        config = parse_config(self.config, Path("the job's configuration"))
        share_ranks()
        fit(config)


@dataclass
class WorkerJob(Job):
    """A worker of a study, by the arguments of its command; a storage's URL, which may hold a password,
    comes by the environment alone."""

    arguments: list[str]
    storage: str | None  # without its password

    def work(self) -> None:

        if self.storage is not None and not os.environ.get(STORAGE_VARIABLE):
            raise UserError(
                f"storage={self.storage}: {STORAGE_VARIABLE} did not come with the job; let sbatch pass the "
                "environment on (SBATCH_EXPORT or --export of this cluster leave it out)"
            )
        work_in_job(self.arguments)


def in_job(work: Callable[[], None]) -> None:
    """Does a job's work, and queues the job again where it is stopped."""
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, which does it
    assert callable(requeue)
    try:
        with listening():  # from now on: submitit passes over a SIGTERM
            work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        job = submitit().JobEnvironment()
        if job.global_rank == 0:  # the others' job is the same one
            queue_again(job, lambda: requeue(signal.SIGUSR2, None), stop.code)


def queue_again(job: Any, requeue: Callable[[], Any], code: int) -> None:
    """Queues this job again and ends it; without the first where SLURM is ending it: after scancel it
    should not come back, and where SLURM requeues by itself it need not be told to."""
    if job.cluster == "slurm" and state(job.job_id) == "COMPLETING":
        print(f"job {job.job_id}: SLURM is ending it; not queued again from here", file=sys.stderr)
        sys.exit(code)
    try:
        requeue()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"not queued again: {error}; the same command goes on with the run", file=sys.stderr)
        sys.exit(code)


def state(job: str) -> str:
    """What SLURM says of a job: RUNNING, COMPLETING, …; nothing where it does not answer."""
    command = ["squeue", "--noheader", "--format=%T", "--jobs", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def share_ranks() -> None:
    """Tells this task its rank by torchrun's variables, so that a run knows one kind of launch only."""
    job = submitit().JobEnvironment()
    if job.num_tasks == 1:
        return
    # A task sees all devices of its node and takes that of its local rank, as under torchrun.
    shared = submitit().helpers.TorchDistributedEnvironment()
    shared.export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["GROUP_RANK"] = str(job.node)
    os.environ["TORCHELASTIC_RUN_ID"] = job.job_id  # by which Lightning knows torchrun


def submit_workers(
    study: Study, asked: SweepKeys, place: Config, count: int, arguments: list[str]
) -> None:
    """Submits so many workers, each a job of an array."""
    pass

    slurm = place.trainer.slurm
    check_cluster(slurm)
    variables = {}
    if asked.storage is None:
        print(
            f"storage: the journal in {study.folder} serves many machines only where the file system's "
            "locks (flock) reach them all; else give storage=postgresql://…",
            file=sys.stderr,
        )
    else:
        variables[STORAGE_VARIABLE] = asked.storage  # a job's script and command are open to others
    mine = ("storage=", "workers=", "retry=", *PLACES)
    rest = [text for text in arguments if not text.startswith(mine)]
    job = WorkerJob(rest, None if asked.storage is None else mask_password(asked.storage))
    config = replace(study.base, name=study.name, trainer=replace(study.base.trainer, slurm=slurm))
    with submitit().helpers.environment_variables(**variables):
        submit([job] * count, study.folder / "slurm", slurm, resources(config, 1, 1))
    print("workers=0 in place of trainer=slurm watches them, and writes the table", file=sys.stderr)
    print(f"study: {study.folder}")


def work_in_job(arguments: list[str]) -> None:
    """Runs trials as the one worker of a job. Raises Stopped at a signal."""
    name, asked, overrides = study_keys(arguments, SweepKeys())
    serve(load_study(name, asked.preset, overrides, asked.runs_dir, asked.changes()), asked, 1)
