"""Opens the storage of a study's trials: a journal in the study's folder or PostgreSQL, for any number
of workers, or SQLite for one.

Every lock of a storage dies with its process, because some worker will be killed while it holds one.
Optuna's own lock for journals is a file that survives a SIGKILL, and blocks the other workers for 30 s.
So files are locked by flock, which the kernel releases (over NFS v4 it works between machines; Lustre
requires the mount option flock), and PostgreSQL by an advisory lock, which the server releases with the
connection.

A process that is forked while a lock is held keeps that lock alive: open and lock after forking, or start
children by exec, which closes both files and connections.
"""

from pathlib import Path

import optuna

from eltlab.common.errors import UserError
from eltlab.common.text import mask_password
from eltlab.studies.databases import open_postgres, open_sqlite
from eltlab.studies.journal import open_journal
from eltlab.studies.storage_base import Storage

KINDS = (
    "nothing for a journal in the study's folder, postgresql://user:password@host:port/database "
    "for many machines, or sqlite:///path for one worker"
)


def open_storage(url: str | None, folder: Path, workers: int = 1, study: str = "") -> Storage:
    """The storage at url, or the journal in folder if url is empty. Raises UserError, or Refused.

    study: names the lock in a PostgreSQL database, which may hold many studies: the same for all workers
    of a study. Studies without a name share a lock. The lock of a journal or of SQLite is a file beside it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url:
        return open_journal(folder)
    if url.startswith("sqlite://"):
        if workers > 1:
            raise UserError(
                f"storage={mask_password(url)} with workers={workers}: SQLite locks its whole file at "
                f"every write and fails under several workers; set workers=1, or as storage {KINDS}"
            )
        return open_sqlite(url)
    if url.startswith(("postgresql://", "postgresql+psycopg://")):
        return open_postgres(url, study)
    raise UserError(f"storage={mask_password(url)} is of no known kind; give {KINDS}")
