"""Databases of trials: PostgreSQL for many workers, SQLite for one."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock
from eltlab.common.text import mask_password
from eltlab.studies.journal import file_errors
from eltlab.studies.storage_base import Refused, Storage

FORM = (
    "write postgresql://user:password@host:port/database, with %40 for @, %3A for : and %2F for / "
    "in the user and the password"
)
CHECK_SERVER = "check that the server runs, and the URL's host, port, user, password and database"
CHECK_FILE = "check the path and its permissions"

# Server and worker notice within a minute that the other's machine is gone, not after TCP's two hours.
CONNECTION = dict(
    connect_timeout=10, keepalives_idle=30, keepalives_interval=10, keepalives_count=3
)
# A server may be configured to end a wait or a lock too early, or too late.
SESSION = """set statement_timeout = 0; set lock_timeout = 0; set idle_session_timeout = 0;
set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"""


def open_sqlite(url: str) -> Storage:
    file = url.removeprefix("sqlite:///").partition("?")[0]
    if file.startswith(("sqlite:", "file:", ":memory:")) or not file:
        raise UserError(f"storage={mask_password(url)} names no file; write sqlite:///path")
    with file_errors(Path(file)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    errors = partial(_database_errors, url, fix=CHECK_FILE)
    with errors():
        storage = _open_tables(url, url)
    return Storage(storage, mask_password(url), partial(file_lock, Path(f"{file}.lock")), errors)


def open_postgres(url: str, study: str) -> Storage:
    target = _parse(url)
    options = {key: value for key, value in CONNECTION.items() if key not in target.query}
    with _database_errors(url):
        locks = create_engine(
            target, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options
        )
        # Workers that start together on an empty database would each create the tables.
        with _advisory_lock(locks, "tables", url):
            storage = _open_tables(
                url,
                target.render_as_string(hide_password=False),
                # max_overflow: Optuna compares the schema's version inside a session.
                engine_kwargs=dict(
                    pool_pre_ping=True, pool_size=1, max_overflow=1, connect_args=options
                ),
            )
    lock = partial(_advisory_lock, locks, f"study {study}", url)
    return Storage(storage, mask_password(url), lock, partial(_database_errors, url))


def _open_tables(url: str, *arguments: Any, **options: Any) -> RDBStorage:
    """Optuna's tables in a database. Raises UserError if another version of Optuna made them."""
    try:
        return RDBStorage(*arguments, **options)
    except RuntimeError as error:  # it says how to upgrade them
        raise UserError(f"storage={mask_password(url)}: {_reason(error, url)}") from None


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
        raise UserError(f"storage={mask_password(url)} has an @ too many; {FORM}")
    return target


@contextmanager
def _advisory_lock(locks: Engine, name: str, url: str) -> Iterator[None]:
    """PostgreSQL's lock of this name, held by a connection of its own."""
    key = int.from_bytes(hashlib.sha256(f"eltlab {name}".encode()).digest()[:8], signed=True)
    with _database_errors(url):
        connection = locks.connect()
    with connection:
        with _database_errors(url):
            connection.exec_driver_sql(SESSION)
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": key})
        yield
        # Closing the connection would unlock as well, but would not tell that the lock was lost before.
        with _database_errors(url, "the study's lock was lost while it was held: "):
            connection.execute(text("select pg_advisory_unlock(:key)"), {"key": key})


@contextmanager
def _database_errors(url: str, what: str = "", fix: str = CHECK_SERVER) -> Iterator[None]:
    """Turns an error of the database into one line without the password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        # Without its cause: a driver may quote the URL.
        raise Refused(f"storage={mask_password(url)}: {what}{_reason(error, url)}; {fix}") from None


def _reason(error: BaseException, url: str) -> str:
    """What the driver said, in one line."""
    if isinstance(error, StorageInternalError):
        error = error.__cause__ or error
    line = " ".join(str(getattr(error, "orig", None) or error).split())
    password = make_url(url).password
    return line.replace(str(password), "***") if password else line
