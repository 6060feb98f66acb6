"""What every storage of a study offers: Optuna's storage, the study's lock, and errors in one line."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from optuna.storages import BaseStorage, RDBStorage

from eltlab.common.errors import UserError
from eltlab.common.signals import Requests

RETRY_SECONDS = 1.0  # between two calls of a storage that refuses
LEASES = 3  # for which a storage may refuse, after which its caller gives up

Answer = TypeVar("Answer")


class Refused(UserError):
    """The storage failed, perhaps for a moment only: a server that is down, a disk that is full."""


@dataclass(frozen=True)
class Storage:
    """An open storage, as `open_storage` returns it."""

    optuna: BaseStorage
    where: str  # the URL without its password, or the journal's path
    _lock: Callable[[], AbstractContextManager[Any]]
    refusals: Callable[[], AbstractContextManager[None]]  # turns what fails inside into Refused

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the study's lock: one worker at a time, on all machines. It is not reentrant.

        Raises Refused if the storage fails; what was written inside may or may not be stored.
        """
        with self.refusals(), self._lock():
            yield

    def close(self) -> None:
        """Ends the connections; a journal has none."""
        if isinstance(self.optuna, RDBStorage):
            self.optuna.engine.dispose()


def retry_refused(
    call: Callable[[], Answer], lease: float, requests: Requests | None = None
) -> Answer:
    """What call returns, called again while the storage refuses. Raises Refused after some leases."""
    started = time.monotonic()
    while True:
        try:
            return call()
        except Refused:
            if time.monotonic() - started > LEASES * lease:
                raise
        if requests is not None:
            requests.raise_if_stopped()
        time.sleep(RETRY_SECONDS)
