"""Where a study's trials are kept, and the lock that its workers share.

A journal in the study's folder, or PostgreSQL, for any number of workers; SQLite for one.

Every lock here dies with its process, however that ends: a worker is killed while it holds one
sooner or later. Optuna's own lock for journals is a file that stays behind a SIGKILL until the
others have waited 30 s for it. So files are locked by flock, which the kernel drops (NFS v4 passes
it on to the server, so it holds among machines; Lustre wants the mount option flock), and
PostgreSQL by an advisory lock, which the server drops with the connection.

A process that is forked off while a lock is held keeps it from dying: open and lock after forks,
or start children by exec, which closes both the files and the connections.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.common.text import mask_password

KINDS = (
    "nothing for a journal in the study's folder, postgresql://user:password@host:port/database "
    "for many machines, or sqlite:///path for one worker"
)
FORM = (
    "write postgresql://user:password@host:port/database, with %40 for @, %3A for : and %2F for / "
    "in the user and the password"
)

REACH = "check that the server runs, and the URL's host, port, user, password and database"


class Refused(UserError):
    """What a storage refused, perhaps for a moment only: a server that is down, a disk that is full."""


@dataclass(frozen=True)
class Storage:
    """What open_storage gives: Optuna's storage and the lock of the study."""

    optuna: BaseStorage
    where: str  # the URL without its password, or the journal's path
    _lock: Callable[[], AbstractContextManager[Any]]
    refusals: Callable[[], AbstractContextManager[None]]  # raises Refused for what fails inside

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held by one worker of the study at a time, on all machines; not twice by the same.

        Raises Refused where the storage fails; what was written inside is then kept or not.
        """
        with self.refusals(), self._lock():
            yield

    def close(self) -> None:
        """Ends the connections; a journal has none."""
        if isinstance(self.optuna, RDBStorage):
            self.optuna.engine.dispose()


def open_storage(url: str | None, folder: Path, workers: int = 1, study: str = "") -> Storage:
    """The storage at url, or the journal in folder where there is none.

    study names the lock in a PostgreSQL database, where studies lie side by side: the same for all
    workers of one study. Those without a name share one lock. Files have their lock beside them.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url:
        return _journal(folder)
    if url.startswith("sqlite://"):
        return _sqlite(url, workers)
    if url.startswith(("postgresql://", "postgresql+psycopg://")):
        return _postgres(url, study)
    raise UserError(f"storage={mask_password(url)} is of no known kind; give {KINDS}")


class JournalLock(JournalFileOpenLock):
    """Serialises the processes that use a journal, and gives each of them a journal that is whole.

    A process killed while it appends leaves the start of a line. Optuna's readers pass over it only
    while it is the last: the next append lands on the same line, and from then on every reader
    fails. Whoever has the lock knows that nobody is writing, so that what follows the last whole
    line is such a rest, and cuts it off.

    The base class of Optuna's locks is not public; of its public children this one is replaced
    whole. The file's name is not that of Optuna's own lock, which a tool that opens the journal
    without us would remove after 30 s.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._flock = journal.with_suffix(".flock")
        self._descriptor = -1

    def acquire(self) -> bool:
        self._descriptor = os.open(self._flock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            mend(self._journal)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        # Unlocked by name before it is closed: a child forked in between has a copy, and a lock
        # ends by itself only when its last copy is closed.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = -1


class Journal(JournalFileBackend):
    """Optuna's journal, read under the lock as well as written.

    A reader keeps the offset where each line starts, and reads in blocks. Without the lock it could
    take the first half of a line from before a cut and the second from after it.
    """

    def __init__(self, path: Path) -> None:
        self._whole = JournalLock(path)
        super().__init__(str(path), lock_obj=self._whole)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        self._whole.acquire()
        try:
            logs = list(super().read_logs(log_number_from))
        finally:
            self._whole.release()
        yield from logs


def mend(journal: Path) -> None:
    """Cuts off what follows the journal's last whole line; for the holder of its lock."""
    try:
        file = journal.open("r+b")
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, os.SEEK_END)
        whole = _whole(file, size)
        if whole < size:
            file.truncate(whole)
            os.fsync(file.fileno())


def _whole(file: BinaryIO, size: int) -> int:
    """Where the last whole line ends."""
    end = _after_newline(file, size)
    start = _after_newline(file, end - 1)
    file.seek(start)
    # A machine that lost power can leave a line's end without its start. One such line and no
    # more: a file that is no journal is not to be eaten from behind.
    return end if _parses(file.read(end - start)) else start


def _after_newline(file: BinaryIO, before: int, block: int = 1 << 16) -> int:
    """The position after the last newline of the first `before` bytes, 0 where there is none."""
    while before > 0:
        start = max(0, before - block)
        file.seek(start)
        at = file.read(before - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        before = start
    return 0


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # bad JSON, and bad UTF-8
        return False


def _journal(folder: Path) -> Storage:
    path = folder / "journal.log"
    with _no_file(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            storage = JournalStorage(Journal(path))
        except ValueError as error:
            raise UserError(_unreadable(path)) from error
    return Storage(
        storage, str(path), lambda: file_lock(folder / "study.lock"), lambda: _no_file(path)
    )


@contextmanager
def _no_file(path: Path) -> Iterator[None]:
    """What the file system refuses, as one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            reason = "its file system has no file locks (flock)"
        raise Refused(
            f"storage={path}: {reason}; choose another folder, or a PostgreSQL database"
        ) from error


def _unreadable(path: Path) -> str:
    lines = path.read_bytes().splitlines()
    bad = [number for number, line in enumerate(lines, start=1) if not _parses(line)]
    return (
        f"storage={path}: line {bad[0] if bad else '?'} is no record of Optuna's journal; "
        "delete that line with no worker running, or choose another folder"
    )


def _sqlite(url: str, workers: int) -> Storage:
    if workers > 1:
        raise UserError(
            f"storage={mask_password(url)} with workers={workers}: SQLite locks its whole file at every "
            f"write and fails under several workers; take workers=1, or as storage {KINDS}"
        )
    file = url.removeprefix("sqlite:///").partition("?")[0]
    if file.startswith(("sqlite:", "file:", ":memory:")) or not file:
        raise UserError(f"storage={mask_password(url)} names no file; write sqlite:///path")
    with _no_file(Path(file)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    mend = "check the path and its permissions"
    with _refusals(url, mend=mend):
        storage = _tables(url, url)
    return Storage(
        storage,
        mask_password(url),
        lambda: file_lock(Path(f"{file}.lock")),
        lambda: _refusals(url, mend=mend),
    )


def _postgres(url: str, study: str) -> Storage:
    target = _target(url)
    # The server is to miss a worker whose machine is gone, and a worker the server, in a minute
    # rather than after the two hours that are TCP's own.
    options: dict[str, Any] = {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    options = {key: value for key, value in options.items() if key not in target.query}
    with _refusals(url):
        locks = create_engine(
            target, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options
        )
        # Workers that start together on an empty database would each create the tables.
        with _advisory(locks, "tables", url):
            storage = _tables(
                url,
                target.render_as_string(hide_password=False),
                # One, and a second while Optuna compares the schema's version inside a session.
                engine_kwargs={
                    "pool_pre_ping": True,
                    "pool_size": 1,
                    "max_overflow": 1,
                    "connect_args": options,
                },
            )
    return Storage(
        storage,
        mask_password(url),
        lambda: _advisory(locks, f"study {study}", url),
        lambda: _refusals(url),
    )


def _tables(url: str, *arguments: Any, **options: Any) -> RDBStorage:
    """Optuna's tables in a database. Raises UserError where they are another Optuna's."""
    try:
        return RDBStorage(*arguments, **options)
    except RuntimeError as error:  # it says how to upgrade them
        raise UserError(f"storage={mask_password(url)}: {_reason(error, url)}") from None


def _target(url: str) -> URL:
    """The URL with the driver that we have."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'storage={mask_password(url)} needs psycopg, PostgreSQL\'s driver; pip install "psycopg[binary]"'
        ) from error
    try:
        target = make_url(url).set(drivername="postgresql+psycopg")
    except (ValueError, SQLAlchemyError):
        # Without its cause: that quotes what it took for the port, perhaps half a password.
        raise UserError(f"storage={mask_password(url)} cannot be read; {FORM}") from None
    if "@" in (target.host or ""):
        raise UserError(f"storage={mask_password(url)} has an @ too many; {FORM}")
    return target


# What a server may have been set to would end a wait or a lock too early, or too late.
SESSION = """set statement_timeout = 0; set lock_timeout = 0; set idle_session_timeout = 0;
set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"""


@contextmanager
def _advisory(locks: Engine, name: str, url: str) -> Iterator[None]:
    """PostgreSQL's lock of this name, held by a connection of its own."""
    key = int.from_bytes(hashlib.sha256(f"eltlab {name}".encode()).digest()[:8], signed=True)
    with _refusals(url):
        connection = locks.connect()
    with connection:
        with _refusals(url):
            connection.exec_driver_sql(SESSION)
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": key})
        yield
        # Asked rather than left to the closing: a lock that was lost on the way is an error.
        with _refusals(url, "the study's lock was lost while it was held: "):
            connection.execute(text("select pg_advisory_unlock(:key)"), {"key": key})


@contextmanager
def _refusals(url: str, what: str = "", mend: str = REACH) -> Iterator[None]:
    """What the database refuses, as one line without the password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        # Without its cause: a driver may quote the URL.
        raise Refused(
            f"storage={mask_password(url)}: {what}{_reason(error, url)}; {mend}"
        ) from None


def _reason(error: BaseException, url: str) -> str:
    """What the driver said, in one line."""
    if isinstance(error, StorageInternalError):
        error = error.__cause__ or error
    line = " ".join(str(getattr(error, "orig", None) or error).split())
    password = make_url(url).password
    return line.replace(str(password), "***") if password else line
