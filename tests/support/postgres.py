"""A PostgreSQL server of the tests' own: on a free loopback port, with passwords, removed at the end.

As root it runs as the user postgres or nobody, because PostgreSQL refuses to run as root.
"""

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

USER, PASSWORD = "sweeper", "s3cret@:/%+{} word"
# The password as it is quoted in a URL.
QUOTED = "s3cret%40%3A%2F%25%2B%7B%7D%20word"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """A function that creates a new empty database at each call and returns its URL."""
    with _served() as server:
        yield server.database


@pytest.fixture
def postgres_server() -> Iterator["Server"]:
    """A server of one test's own, which it may stop and start again."""
    with _served() as server:
        yield server


@contextmanager
def _served() -> Iterator["Server"]:
    psycopg = pytest.importorskip("psycopg", reason='needs pip install "psycopg[binary]"')
    binaries = _binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    # Not pytest's own temporary folder: that is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="eltlab-postgres-"))
    try:
        identity = _identity(folder)
        _initdb(binaries, folder, identity)
        server = Server(binaries, folder, identity, psycopg)
        # Another process may take the port between its choice and the server's start.
        if not any(server.start(free_port()) for _ in range(5)):
            raise RuntimeError(f"PostgreSQL does not start:\n{(folder / 'log').read_text()}")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """PostgreSQL in a temporary folder."""

    def __init__(self, binaries: Path, folder: Path, identity: dict[str, Any], psycopg: Any) -> None:
        self.binaries, self.folder, self.identity = binaries, folder, identity
        self.psycopg, self.port = psycopg, 0
        self.numbers = itertools.count()

    def start(self, port: int | None = None) -> bool:
        """Starts at a port, or at the previous one. Returns whether it answers."""
        self.port = port or self.port
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
        }
        command = [self.binaries / "postgres", "-D", self.folder / "data"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_die_with_parent,
                **self.identity,
            )
        try:
            return _answers(self.process, self.port, self.psycopg)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops at once, even if clients are connected."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def database(self) -> str:
        """Creates an empty database; returns its URL."""
        name = f"sweeps{next(self.numbers)}"
        with self.psycopg.connect(_url(self.port, "postgres"), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return _url(self.port, name)


def _binaries() -> Path | None:
    """The folder of initdb and postgres, of the newest version if there are several."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: [int(part) for part in path.parts[4].split(".")],
    )
    on_path = shutil.which("initdb")
    initdb = found[-1] if found else Path(on_path).resolve() if on_path else None
    return initdb.parent if initdb and (initdb.parent / "postgres").exists() else None


def _identity(folder: Path) -> dict[str, Any]:
    """Who the server runs as, for subprocess; the folder becomes that user's."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _initdb(binaries: Path, folder: Path, identity: dict[str, Any]) -> None:
    (folder / "password").write_text(PASSWORD)
    command = [binaries / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256"]
    command += [f"--pwfile={folder / 'password'}", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **identity)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    """The kernel sends SIGINT, a fast shutdown, when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _answers(server: subprocess.Popen, port: int, psycopg: Any) -> bool:
    """Waits for the server; False if it has ended instead."""
    while server.poll() is None:
        try:
            psycopg.connect(_url(port, "postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return True
    return False


def _url(port: int, database: str) -> str:
    return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{port}/{database}"
