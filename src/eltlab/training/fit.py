"""The path of a run: prepare, train, evaluate. `fit`, a study's trial and a cluster job all take it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from eltlab.common import collectives, ranks
from eltlab.common.package_info import confirm_source
from eltlab.common.signals import listening
from eltlab.config.schema import Config
from eltlab.evaluation.prepare_run import prepare
from eltlab.runs.run_folder import Run


def fit(config: Config, wait: bool = False) -> None:
    """Takes the run of a configuration from its last checkpoint to its last row. Raises Stopped at a signal.
    wait: if another process trains the run, wait for it and continue from there; else UserError."""
    with listening() as requests:
        prepared = prepare(config)

        # Imported late: a mistake is reported before Lightning is loaded, which takes seconds.
        from eltlab.evaluation.evaluate import evaluate
        from eltlab.training.train import train

        confirm_source()
        with hold(prepared.run, wait):
            train(prepared, requests)
            if prepared.requests:
                evaluate(prepared)
        print(f"run: {prepared.run.folder}")


@contextmanager
def hold(run: Run, wait: bool) -> Iterator[None]:
    """Locks the run for all of its processes: the main process takes the lock, the others wait for it."""
    with run.lock(wait) if ranks.is_main_process() else nullcontext():
        collectives.barrier()
        yield
