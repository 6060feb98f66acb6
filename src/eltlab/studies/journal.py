"""Optuna's journal, a file to which every worker appends: its lock, and the cut of a torn line."""

import json
import mmap
import os
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from eltlab.common.files import file_lock


class JournalLock(JournalFileOpenLock):
    """Lets one process at a time use a journal, and cuts a torn line off first.

    A process that is killed while it appends leaves the start of a line. Optuna's readers skip it only
    while it is the last line: the next append continues the same line, and then every reader fails.

    Optuna does not publish the base class of its locks, so this derives from one of its locks and replaces
    all of it. The name of the file differs from that of Optuna's lock, which a tool that opens the journal
    without eltlab would remove after 30 s.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held = ExitStack()

    def acquire(self) -> bool:
        with ExitStack() as held:
            held.enter_context(file_lock(self._journal.with_suffix(".flock")))
            cut_torn_line(self._journal)
            self._held = held.pop_all()  # keeps the lock after this block
        return True

    def release(self) -> None:
        self._held.close()


class Journal(JournalFileBackend):
    """Optuna's journal, locked for reading as well as for writing.

    A reader remembers the offset of each line and reads in blocks. Without the lock it could read the
    first half of a line from before a cut and the second half from after it.
    """

    def __init__(self, path: Path) -> None:
        self._read_lock = JournalLock(path)
        super().__init__(str(path), lock_obj=self._read_lock)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        self._read_lock.acquire()
        try:
            logs = list(super().read_logs(log_number_from))
        finally:
            self._read_lock.release()
        yield from logs


def cut_torn_line(journal: Path) -> None:
    """Cuts off what follows the last complete record. The caller holds the lock, so nobody is writing."""
    size = journal.stat().st_size if journal.is_file() else 0
    if not size:  # an empty file cannot be mapped
        return
    with journal.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
            start = content.rfind(b"\n", 0, max(end - 1, 0)) + 1
            # After a power failure the last line may have its newline and not its start. Only one such
            # line is cut: a file that is not a journal must not be eaten from its end.
            complete = end if is_record(content[start:end]) else start
        if complete < size:
            file.truncate(complete)
            os.fsync(file.fileno())


def is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # bad JSON, or bad UTF-8
        return False
