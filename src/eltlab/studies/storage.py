"""The storage of a study's trials: a journal in the study's folder or PostgreSQL, for any number of
workers, or SQLite for one.

Every lock of a storage dies with its process, because some worker will be killed while it holds one.
Optuna's own lock for journals is a file that survives a SIGKILL, and blocks the other workers for 30 s.
So files are locked by flock, which the kernel releases (over NFS v4 it works between machines; Lustre
requires the mount option flock), and PostgreSQL by an advisory lock, which the server releases with the
connection.

A process that is forked while a lock is held keeps that lock alive: open and lock after forking, or start
children by exec, which closes both files and connections.
"""

import errno
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy import URL, NullPool, create_engine, inspect, make_url, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock
from eltlab.common.signals import Requests
from eltlab.common.text import mask_password
from eltlab.studies.journal import Journal, is_record

KINDS = (
    "nothing for a journal in the study's folder, postgresql://user:password@host:port/database "
    "for many machines, or sqlite:///path for one worker"
)
FORM = (
    "write postgresql://user:password@host:port/database, with %40 for @, %3A for : and %2F for / "
    "in the user and the password"
)
CHECK_SERVER = "check that the server runs, and the URL's host, port, user, password and database"
RETRY_SECONDS = 1.0  # between two calls of a storage that refuses
LEASES = 3  # a caller gives up if the storage refuses for this many leases

# Server and worker notice within a minute that the other's machine is gone, not after TCP's two hours.
CONNECTION = dict(connect_timeout=10, keepalives_idle=30, keepalives_interval=10, keepalives_count=3)
# A server may be configured to end a wait or a lock too early, or too late.
SESSION = """set statement_timeout = 0; set lock_timeout = 0; set idle_session_timeout = 0;
set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"""

Answer = TypeVar("Answer")


class Refused(UserError):
    """The storage failed, perhaps only for a moment: the server is down, or the disk is full."""


@dataclass(frozen=True, repr=False)  # a repr would show the password that the bound URLs hold
class Storage:
    """An open storage, as `open_storage` returns it."""

    optuna: BaseStorage
    where: str  # the URL without its password, or the journal's path
    _lock: Callable[[], AbstractContextManager[Any]]
    refusals: Callable[[], AbstractContextManager[None]]  # turns errors inside into Refused

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


def retry_refused(call: Callable[[], Answer], lease: float, requests: Requests | None = None) -> Answer:
    """Repeats a call until the storage answers; returns the answer. Raises Refused after LEASES leases."""
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


def open_storage(url: str | None, folder: Path, workers: int = 1, study: str = "") -> Storage:
    """The storage at url, or the journal in folder if url is empty. Raises UserError, or Refused.

    study: names the lock in a PostgreSQL database, which may hold many studies; all workers of a study
    give the same name. Studies without a name share a lock. A journal and SQLite have a lock file instead.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url:
        return _open_journal(folder)
    if url.startswith("sqlite://"):
        if workers > 1:
            raise UserError(
                f"storage={mask_password(url)} with workers={workers}: SQLite locks its whole file at "
                f"every write and fails under several workers; set workers=1, or as storage {KINDS}"
            )
        return _open_sqlite(url)
    if url.startswith(("postgresql://", "postgresql+psycopg://")):
        return _open_postgres(url, study)
    raise UserError(f"storage={mask_password(url)} is of an unknown kind; give {KINDS}")


def find_storage(url: str | None, folder: Path, study: str) -> Storage | None:
    """`open_storage`, if the storage exists and holds this study; else None. Nothing is created."""
    if not _exists(url, folder):
        return None
    storage = open_storage(url, folder, study=study)
    with storage.refusals():
        if study in (each.study_name for each in storage.optuna.get_all_studies()):
            return storage
    storage.close()
    return None


def _exists(url: str | None, folder: Path) -> bool:
    """Whether the journal, the file of SQLite, or the tables in PostgreSQL exist."""
    if not url:
        return (folder / "journal.log").is_file()
    if url.startswith("sqlite://"):
        if not _sqlite_file(url).is_file():
            return False
        target, options = make_url(url), {}
    elif url.startswith(("postgresql://", "postgresql+psycopg://")):
        target = _parse(url)
        options = _connect_args(target)
    else:
        return True  # open_storage says what is wrong with it
    with _database_errors(url):
        engine = create_engine(target, poolclass=NullPool, connect_args=options)
        return inspect(engine).has_table("version_info")


# --- files ----------------------------------------------------------------------------------------


def _open_journal(folder: Path) -> Storage:
    path = folder / "journal.log"
    with _file_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            storage = JournalStorage(Journal(path))
        except ValueError as error:
            lines = enumerate(path.read_bytes().splitlines(), start=1)
            bad = next((number for number, line in lines if not is_record(line)), "?")
            raise UserError(
                f"storage={path}: line {bad} is not a record of Optuna's journal; delete that line with no "
                "worker running, or choose a different folder"
            ) from error
    lock = partial(file_lock, folder / "study.lock")
    return Storage(storage, str(path), lock, partial(_file_errors, path))


def _open_sqlite(url: str) -> Storage:
    file = _sqlite_file(url)
    with _file_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    errors = partial(_database_errors, url, fix="check the path and its permissions")
    with errors():
        storage = _open_tables(url, url)
    return Storage(storage, mask_password(url), partial(file_lock, Path(f"{file}.lock")), errors)


def _sqlite_file(url: str) -> Path:
    """The file of SQLite's URL. Raises UserError."""
    file = url.removeprefix("sqlite:///").partition("?")[0]
    if file.startswith(("sqlite:", "file:", ":memory:")) or not file:
        raise UserError(f"storage={mask_password(url)} names no file; write sqlite:///path")
    return Path(file)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turns an error of the file system into Refused, in one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            reason = "its file system has no file locks (flock)"
        raise Refused(
            f"storage={path}: {reason}; choose a different folder, or a PostgreSQL database"
        ) from error


# --- databases ------------------------------------------------------------------------------------


def _open_postgres(url: str, study: str) -> Storage:
    target = _parse(url)
    options = _connect_args(target)
    with _database_errors(url):
        locks = create_engine(target, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options)
        # Workers that start together on an empty database would each create the tables.
        with _advisory_lock(locks, "tables", url):
            storage = _open_tables(
                url,
                target.render_as_string(hide_password=False),
                # max_overflow: Optuna compares the schema's version over a second connection.
                engine_kwargs=dict(pool_pre_ping=True, pool_size=1, max_overflow=1, connect_args=options),
            )
    lock = partial(_advisory_lock, locks, f"study {study}", url)
    return Storage(storage, mask_password(url), lock, partial(_database_errors, url))


def _connect_args(target: URL) -> dict[str, Any]:
    return {key: value for key, value in CONNECTION.items() if key not in target.query}


def _parse(url: str) -> URL:
    """The URL with the driver psycopg. Raises UserError."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"storage={mask_password(url)} requires psycopg, PostgreSQL's driver; "
            'pip install "psycopg[binary]"'
        ) from error
    try:
        target = make_url(url).set(drivername="postgresql+psycopg")
    except (ValueError, SQLAlchemyError):
        # Without its cause, which quotes what it took for the port: perhaps half a password.
        raise UserError(f"storage={mask_password(url)} cannot be read; {FORM}") from None
    if "@" in (target.host or ""):
        raise UserError(f"storage={mask_password(url)} has one @ too many; {FORM}")
    return target


def _open_tables(url: str, *arguments: Any, **options: Any) -> RDBStorage:
    """Optuna's tables in a database. Raises UserError if a different version of Optuna made them."""
    try:
        return RDBStorage(*arguments, **options)
    except RuntimeError as error:  # it says how to upgrade them
        raise UserError(f"storage={mask_password(url)}: {_reason(error, url)}") from None


@contextmanager
def _advisory_lock(locks: Engine, name: str, url: str) -> Iterator[None]:
    """Holds PostgreSQL's lock of this name through a separate connection."""
    key = int.from_bytes(hashlib.sha256(f"eltlab {name}".encode()).digest()[:8], signed=True)
    with _database_errors(url):
        connection = locks.connect()
    with connection:
        with _database_errors(url):
            connection.exec_driver_sql(SESSION)
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": key})
        yield
        # Closing the connection would unlock as well, but would not report that the lock was lost before.
        with _database_errors(url, "the study's lock was lost while it was held: "):
            connection.execute(text("select pg_advisory_unlock(:key)"), {"key": key})


@contextmanager
def _database_errors(url: str, what: str = "", fix: str = CHECK_SERVER) -> Iterator[None]:
    """Turns an error of the database into Refused, in one line without the password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        # Without its cause: a driver may quote the URL.
        raise Refused(f"storage={mask_password(url)}: {what}{_reason(error, url)}; {fix}") from None


def _reason(error: BaseException, url: str) -> str:
    """The driver's message in one line, without the password."""
    if isinstance(error, StorageInternalError):
        error = error.__cause__ or error
    line = " ".join(str(getattr(error, "orig", None) or error).split())
    password = make_url(url).password
    return line.replace(str(password), "***") if password else line
