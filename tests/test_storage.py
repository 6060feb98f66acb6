"""Storages of studies: several processes at once, killed at any moment, on a journal and on
PostgreSQL. The processes, the kills, the torn lines and the server are real."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from conftest import until
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from postgres import PASSWORD, QUOTED, USER

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock
from eltlab.common.text import mask_password
from eltlab.studies.journal import JournalLock
from eltlab.studies.storage import open_storage

# Children come from a server that has the imports done, and inherit none of our locks.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["eltlab.studies.storage", "psycopg", "pytest", "sqlalchemy.dialects"])
PATIENCE = 120
AT_ONCE = 25  # seconds; less than the 30 that Optuna's own lock may outlive its holder
# Trials of a process that will be killed: more than it can finish before.
ENDLESS = 10**6


@dataclass(frozen=True)
class Place:
    """Where a storage is; every process opens it for itself."""

    url: str | None
    folder: Path

    def open(self, study="s"):
        return open_storage(self.url, self.folder, study=study)

    def study(self):
        return joined(self.open())


def joined(storage):
    return optuna.create_study(storage=storage.optuna, study_name="s", load_if_exists=True)


@pytest.fixture(params=["journal", "postgres"])
def place(request, tmp_path):
    url = request.getfixturevalue("postgres")() if request.param == "postgres" else None
    return Place(url, tmp_path)


@pytest.fixture
def journal(tmp_path):
    return Place(None, tmp_path)


@pytest.fixture
def start():
    """Starts a function in a process; returns the process and the pipe on which it reports."""
    started = []

    def begin(function, *arguments):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=function, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()
        started.append(process)
        return process, ours

    yield begin
    for process in started:
        process.kill()
        process.join()


def heard(pipe, seconds=PATIENCE):
    assert pipe.poll(seconds), "no word from the process"
    return pipe.recv()


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def run_trials(study, count, name="here"):
    for index in range(count):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("by", [name, index])
        study.tell(trial, index)


def told(study):
    """The complete trials, each as the process that ran it and its index there."""
    return sorted(trial.user_attrs["by"] for trial in study.get_trials(states=[TrialState.COMPLETE]))


# --- processes that write, and that read what others wrote ------------------------------------


def working(pipe, place, count, name):
    run_trials(place.study(), count, name)
    pipe.send("done")


def reading(pipe, place):
    study = place.study()
    for _ in iter(pipe.recv, None):
        pipe.send(told(study))


def test_trials_of_one_process_are_read_by_another(place, start):
    study = place.study()
    _, pipe = start(reading, place)
    run_trials(study, 2)
    pipe.send("read")
    assert heard(pipe) == [["here", 0], ["here", 1]]
    run_trials(study, 1, "later")
    pipe.send("read")
    assert heard(pipe) == [["here", 0], ["here", 1], ["later", 0]]

    _, pipe = start(working, place, 2, "there")
    assert heard(pipe) == "done"
    assert told(study) == [["here", 0], ["here", 1], ["later", 0], ["there", 0], ["there", 1]]
    trial = study.trials[-1]
    assert (trial.number, trial.value, trial.distributions["x"].high) == (4, 1.0, 1.0)


def opening(pipe, place):
    pipe.send("ready")
    pipe.recv()
    pipe.send(joined(place.open())._study_id)


def test_workers_that_start_together_create_one_study(place, start):
    pipes = [start(opening, place)[1] for _ in range(4)]
    assert [heard(pipe) for pipe in pipes] == ["ready"] * 4
    for pipe in pipes:
        pipe.send("go")
    assert len({heard(pipe) for pipe in pipes}) == 1


OTHERS = """from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend'
    and pid <> pg_backend_pid()"""


def test_a_worker_needs_few_connections(postgres, tmp_path):
    import psycopg

    url = postgres()
    storage = Place(url, tmp_path).open()
    study = joined(storage)
    with psycopg.connect(url, autocommit=True) as connection:

        def come_to(expected):
            # Closed connections take a moment to disappear.
            count = f"select count(*) {OTHERS}"
            until(lambda: connection.execute(count).fetchone()[0] == expected)

        threads = [threading.Thread(target=run_trials, args=(study, 2)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(study.trials) == 8
        come_to(1)
        with storage.exclusive():
            come_to(2)
        storage.close()
        come_to(0)


def test_a_worker_outlives_the_connections_that_the_server_ends(postgres, tmp_path):
    import psycopg

    url = postgres()
    study = Place(url, tmp_path).study()
    run_trials(study, 1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"select pg_terminate_backend(pid, 10000) {OTHERS}")
    run_trials(study, 1, "after")
    assert told(study) == [["after", 0], ["here", 0]]


# --- torn lines -------------------------------------------------------------------------------

RECORD = b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":"2026-01-01T00:00:00.000000"}'
TORN = {
    "one byte": b"{",
    "half a record": RECORD[: len(RECORD) // 2],
    "all but the newline": RECORD,
    "longer than a block": b'{"x":"' + b"y" * 200_000,
    "garbage": b"\x00\xff\xfe\x80{",
    "garbage with a newline": b"\x00\x00\xff\xc3\n",
    "a line's end alone": RECORD[30:] + b"\n",
    "garbage of two lines": b"\xff\x00\n\xfe\x01",
    "a blank line": b"\n",
    "inside a character": '{"user_attr":{"by":"é'.encode()[:-1],
}
torn_by = pytest.mark.parametrize("torn", TORN.values(), ids=TORN)


def append(place, torn):
    with (place.folder / "journal.log").open("ab") as file:
        file.write(torn)


def content(place):
    return (place.folder / "journal.log").read_bytes()


@torn_by
def test_opening_a_journal_cuts_a_torn_line_and_nothing_else(torn, journal):
    run_trials(journal.study(), 2)
    before = content(journal)
    append(journal, torn)
    storage = journal.open()
    assert content(journal) == before
    run_trials(joined(storage), 1, "after")
    assert told(journal.study()) == [["after", 0], ["here", 0], ["here", 1]]


@pytest.mark.parametrize("torn", [b"", *TORN.values()], ids=["empty", *TORN])
def test_a_journal_with_only_a_torn_line_is_empty(torn, journal):
    append(journal, torn)
    study = journal.study()
    run_trials(study, 1)
    assert told(study) == told(journal.study()) == [["here", 0]]
    assert content(journal).startswith(b'{"op_code":0')


@torn_by
@pytest.mark.parametrize("first", ["reads", "writes"])
def test_a_line_torn_under_open_journals_loses_nothing_else(torn, first, journal):
    a, b = journal.study(), journal.study()
    expected = []

    def write(study, name):
        run_trials(study, 1, name)
        expected.append([name, 0])

    write(a, "a0")
    assert told(b) == expected
    write(b, "b0")
    append(journal, torn)
    if first == "reads":
        # Both remember their offsets before the other's append cuts the line.
        assert told(a) == told(b) == expected
    for name in ("a1", "a2"):
        write(a, name)
    assert told(b) == sorted(expected)
    append(journal, torn)
    write(b, "b1")
    write(a, "a3")
    assert told(a) == told(b) == told(journal.study()) == sorted(expected)
    assert [trial.number for trial in a.trials] == list(range(6))


def torn_off(pipe, place, bytes_left):
    """Is killed by the kernel in the middle of Optuna's write, while it holds the lock."""
    study = place.study()
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    size = (place.folder / "journal.log").stat().st_size
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + bytes_left, size + bytes_left))
    study.ask()


@pytest.mark.parametrize("bytes_left", [1, 40, 120])
def test_a_worker_that_dies_during_its_write(bytes_left, journal, start):
    a, b = journal.study(), journal.study()
    run_trials(a, 1)
    # The study exists: joining it tries to create it, and that writes a record too.
    lines = content(journal).count(b"\n")
    process, _ = start(torn_off, journal, bytes_left)
    process.join()
    assert process.exitcode == -signal.SIGXFSZ
    head, _, tail = content(journal).rpartition(b"\n")
    assert head.count(b"\n") + 1 == lines + 1 and len(tail) == bytes_left
    assert told(b) == [["here", 0]]
    run_trials(b, 1, "b")
    run_trials(a, 1, "a")
    assert told(a) == told(b) == [["a", 0], ["b", 0], ["here", 0]]


def test_a_bad_line_inside_a_journal_is_named(journal):
    run_trials(journal.study(), 1)
    lines = content(journal).splitlines(keepends=True)
    damaged = [*lines[:2], b"{\xff\n", *lines[2:]]
    (journal.folder / "journal.log").write_bytes(b"".join(damaged))
    with pytest.raises(UserError, match=r"journal\.log: line 3 is") as caught:
        journal.open()
    assert "\n" not in str(caught.value)
    assert content(journal) == b"".join(damaged)  # nothing that may be a record is cut


def test_a_file_that_is_no_journal_keeps_its_lines(journal):
    lines = b"".join(b"line %d\n" % number for number in range(5))
    append(journal, lines)
    with pytest.raises(UserError, match="line 1 is"):
        journal.open()
    assert content(journal).count(b"\n") >= 4


def test_readers_wait_for_the_writer(journal):
    """Otherwise a reader could join half of a line that is cut with half of the next one."""
    study = journal.study()
    lock = JournalLock(journal.folder / "journal.log")
    lock.acquire()
    reader = threading.Thread(target=lambda: study.trials)
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    lock.release()
    reader.join(PATIENCE)
    assert not reader.is_alive()


def test_a_forked_child_does_not_keep_the_journals_lock(journal):
    lock = JournalLock(journal.folder / "journal.log")
    lock.acquire()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)  # until the parent closes its end
        os._exit(0)
    lock.release()
    with file_lock(journal.folder / "journal.flock", wait=False) as free:
        assert free
    os.close(theirs)
    os.close(ours)
    os.waitpid(child, 0)


def test_a_file_system_without_locks_is_reported(journal, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="no file locks"):
        journal.open()


# --- locks --------------------------------------------------------------------------------------


def holding(pipe, place, lock):
    """Reports when it waits, when it has the lock, and when it has released it."""
    held = place.open()
    pipe.send("waits")
    if lock == "journal":
        journal_lock = JournalLock(place.folder / "journal.log")
        journal_lock.acquire()
        pipe.send("holds")
        pipe.recv()
        journal_lock.release()
    else:
        with held.exclusive():
            pipe.send("holds")
            pipe.recv()
    pipe.send("free")


def waiting(start, place, lock):
    process, pipe = start(holding, place, lock)
    assert heard(pipe) == "waits"
    return process, pipe


def has_not(pipe):
    """Whether nothing is reported in 0.3 s, so the process does not have the lock."""
    return not pipe.poll(0.3)


@pytest.fixture(params=["journal", "exclusive on a journal", "postgres", "sqlite"])
def lock(request, tmp_path):
    """A place, and the name of one of its locks."""
    name = request.param
    if name == "postgres":
        return Place(request.getfixturevalue("postgres")(), tmp_path), "exclusive"
    if name == "sqlite":
        return Place(f"sqlite:///{tmp_path}/study.db", tmp_path), "exclusive"
    return Place(None, tmp_path), name.partition(" ")[0]


def test_a_killed_holder_frees_its_lock_at_once(lock, start):
    holder, pipe = waiting(start, *lock)
    assert heard(pipe) == "holds"
    if lock[1] == "journal":
        # Opening reads the journal, which takes its lock, so the second cannot report that it waits.
        _, second = start(holding, *lock)
    else:
        _, second = waiting(start, *lock)
    assert has_not(second)
    kill(holder)
    words = [heard(second, AT_ONCE)]
    while words[-1] != "holds":
        words.append(heard(second, AT_ONCE))
    second.send("let go")
    assert heard(second) == "free"


def test_a_killed_waiter_does_not_get_the_lock(lock, start):
    first, pipe = waiting(start, *lock)
    assert heard(pipe) == "holds"
    dead, _silent = start(holding, *lock)
    time.sleep(0.2)  # by now it waits
    kill(dead)
    third, last = start(holding, *lock)
    assert not any(word == "holds" for word in iter_words(last, 0.3))
    pipe.send("let go")
    assert heard(pipe) == "free"
    while heard(last) != "holds":
        pass
    assert first.is_alive() or first.exitcode == 0
    last.send("let go")
    assert heard(last) == "free"
    third.join()


def iter_words(pipe, seconds):
    while pipe.poll(seconds):
        yield pipe.recv()


def counting(pipe, place, rounds):
    held = place.open()
    counter = place.folder / "counter"
    for _ in range(rounds):
        with held.exclusive():
            count = int(counter.read_text())
            time.sleep(0.001)  # without the lock the others read the same number
            counter.write_text(str(count + 1))
    pipe.send("done")


def test_no_update_is_lost_under_exclusive(place, start):
    (place.folder / "counter").write_text("0")
    pipes = [start(counting, place, 8)[1] for _ in range(3)]
    assert [heard(pipe) for pipe in pipes] == ["done"] * 3
    assert (place.folder / "counter").read_text() == "24"


CLAIMS = 16


def claiming(pipe, place, killed_at):
    """Claims number after number in a file. Kills itself while it holds the lock, once killed_at
    numbers are claimed."""
    held = place.open()
    claims = place.folder / "claims"
    while True:
        with held.exclusive():
            count = len(claims.read_text().split())
            if killed_at is not None and count >= killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if count == CLAIMS:
                break
            with claims.open("a") as file:
                file.write(f"{count}\n")
    pipe.send("done")


def test_claims_are_unique_though_claimants_are_killed_holding_the_lock(place, start):
    (place.folder / "claims").write_text("")
    killed = [start(claiming, place, at)[0] for at in (0, 4, 8)]
    survivors = [start(claiming, place, None)[1] for _ in range(2)]
    assert [heard(pipe) for pipe in survivors] == ["done"] * 2
    assert (place.folder / "claims").read_text().split() == [str(n) for n in range(CLAIMS)]
    for process in killed:
        process.join()
        assert process.exitcode == -signal.SIGKILL


def test_an_exception_under_exclusive_frees_the_lock(place, start):
    held = place.open()
    with pytest.raises(ZeroDivisionError), held.exclusive():
        _ = 1 / 0
    _, pipe = waiting(start, place, "exclusive")
    assert heard(pipe) == "holds"


def test_studies_in_one_database_have_locks_of_their_own(postgres, tmp_path, start):
    place = Place(postgres(), tmp_path)
    with place.open("another").exclusive():
        _, pipe = waiting(start, place, "exclusive")
        assert heard(pipe) == "holds"


def test_a_lock_that_the_server_took_back_is_an_error(postgres, tmp_path):
    import psycopg

    url = postgres()
    storage = Place(url, tmp_path).open()
    end = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
    with (
        pytest.raises(UserError, match="lock was lost") as caught,
        storage.exclusive(),
        psycopg.connect(url) as connection,
    ):
        connection.execute(end)
    assert_one_line(caught.value)
    with storage.exclusive():
        pass


# --- a storm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_a_storm_of_kills_leaves_a_journal_that_all_can_read(seed, journal, start):
    randomness = random.Random(seed)
    watcher = journal.study()
    counts = [ENDLESS, ENDLESS, 50, 50]
    processes = [start(working, journal, count, f"w{n}") for n, count in enumerate(counts)]
    doomed = dict(enumerate(sorted(randomness.sample(range(100, 400), 2))))
    for number, lines in doomed.items():
        until(lambda lines=lines: content(journal).count(b"\n") >= lines)
        kill(processes[number][0])
        torn, _ = start(torn_off, journal, randomness.randrange(1, 120))
        torn.join()
        assert torn.exitcode == -signal.SIGXFSZ
    assert [heard(pipe) for _, pipe in processes[2:]] == ["done"] * 2

    names = {name for name, _ in told(watcher)}
    assert names >= {"w2", "w3"}
    for survivor in ("w2", "w3"):
        assert [pair for pair in told(watcher) if pair[0] == survivor] == [
            [survivor, index] for index in range(50)
        ]
    assert [trial.number for trial in watcher.trials] == list(range(len(watcher.trials)))
    assert told(watcher) == told(journal.study())
    # Optuna's own reader, which other tools use, and every line by itself.
    plain = optuna.storages.JournalStorage(
        JournalFileBackend(str(journal.folder / "journal.log"), JournalLock(journal.folder / "x"))
    )
    assert told(optuna.load_study(storage=plain, study_name="s")) == told(watcher)
    assert all(isinstance(json.loads(line), dict) for line in content(journal).splitlines())


def test_kills_leave_unique_trials_in_postgres(postgres, tmp_path, start):
    place = Place(postgres(), tmp_path)
    watcher = place.study()
    counts = [ENDLESS, 6, 6]
    processes = [start(working, place, count, f"w{n}") for n, count in enumerate(counts)]
    until(lambda: len(watcher.trials) >= 5)
    kill(processes[0][0])
    assert [heard(pipe) for _, pipe in processes[1:]] == ["done"] * 2
    assert [trial.number for trial in watcher.trials] == list(range(len(watcher.trials)))
    assert [pair for pair in told(watcher) if pair[0] != "w0"] == [
        [name, index] for name in ("w1", "w2") for index in range(6)
    ]


# --- URLs -----------------------------------------------------------------------------------------


def assert_one_line(error):
    message = str(error)
    assert "\n" not in message
    assert PASSWORD not in message and QUOTED not in message and "s3cret" not in message
    assert message.startswith("storage=")


def refused(url, folder, workers=1):
    with pytest.raises(UserError) as caught:
        open_storage(url, folder, workers)
    assert_one_line(caught.value)
    assert (
        caught.value.__suppress_context__
        or caught.value.__cause__ is None
        or ("s3cret" not in repr(caught.value.__cause__))
    )
    return str(caught.value)


def test_sqlite_is_for_one_worker(tmp_path):
    url = f"sqlite:///{tmp_path}/new/study.db"
    message = refused(url, tmp_path, workers=2)
    assert "workers=2" in message and "workers=1" in message and "postgresql://" in message
    assert not (tmp_path / "new").exists()
    place = Place(url, tmp_path)
    run_trials(place.study(), 2)
    assert told(place.study()) == [["here", 0], ["here", 1]]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("mysql://u:s3cret@host/db", "an unknown kind"),
        ("postgresql+psycopg2://u:s3cret@host/db", "an unknown kind"),
        ("postgres://u:s3cret@host/db", "an unknown kind"),
        ("journal.log", "an unknown kind"),
        ("postgresql:u:s3cret@host", "an unknown kind"),
        ("host=h user=u password=s3cret", "an unknown kind"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////proc/version/study.db", "proc"),
        ("postgresql://u:pw@s3cret@host:1/db", "%40"),
        ("postgresql://u:pw@s3cret:x@host:1/db", "%40"),
        ("postgresql://u:s3cret@host:port/db", "cannot be read"),
        ("postgresql://u:s3cret@host.invalid/db", "host.invalid"),
        ("postgresql://u@host.invalid/db?password=s3cret", "host.invalid"),
    ],
)
def test_bad_urls_are_one_line_without_the_password(url, part, tmp_path):
    pytest.importorskip("psycopg")
    assert part in refused(url, tmp_path)


def test_a_server_that_is_not_there(tmp_path):
    pytest.importorskip("psycopg")
    message = refused(f"postgresql://{USER}:{QUOTED}@127.0.0.1:1/db", tmp_path)
    assert "refused" in message and "127.0.0.1:1" in message and "check that the server" in message


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (QUOTED, "s3cret-not", "password authentication failed"),
        (QUOTED, "", "password"),
        ("/sweeps", "/nothing", "does not exist"),
        (USER, "somebody", "somebody"),
    ],
)
def test_a_server_that_refuses(old, new, part, postgres, tmp_path):
    assert part in refused(postgres().replace(old, new), tmp_path)


def test_the_url_may_name_the_driver(postgres, tmp_path):
    url = postgres()
    run_trials(Place(url, tmp_path).study(), 1)
    spelled = url.replace("postgresql://", "postgresql+psycopg://")
    storage = Place(spelled + "?connect_timeout=5", tmp_path).open()
    assert told(joined(storage)) == [["here", 0]]
    assert PASSWORD not in repr(storage) and QUOTED not in repr(storage)
    assert storage.where.startswith(f"postgresql+psycopg://{USER}:***@127.0.0.1:")


def test_tables_of_another_optuna_are_refused(postgres, tmp_path):
    import psycopg

    url = postgres()
    Place(url, tmp_path).open()
    with psycopg.connect(url) as connection:
        connection.execute("update alembic_version set version_num = 'v9.9.9'")
    message = refused(url, tmp_path)
    assert "no longer compatible" in message and "check that the server" not in message


def test_a_missing_driver_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = refused("postgresql://u:s3cret@host/db", tmp_path)
    assert 'pip install "psycopg[binary]"' in message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h:1/db", "postgresql://u:***@h:1/db"),
        ("postgresql://u:p@q:r/s@h:1/db", "postgresql://u:***@h:1/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        (
            "postgresql:///db?user=u&password=p&host=h",
            "postgresql:///db?user=u&password=***&host=h",
        ),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("mysql+x://u:p\nq@h", "mysql+x://u:***@h"),
    ],
)
def test_mask_password(url, expected):
    assert mask_password(url) == expected
