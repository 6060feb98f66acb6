"""Storages that several processes use at once, some of which are killed."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from support.storages import Place, content, joined, run_trials, told
from support.waiting import until

from eltlab.studies.journal import JournalLock

pytestmark = pytest.mark.integration

# Forks, of a process that holds no lock: a lock would survive in them.
PROCESSES = multiprocessing.get_context("fork")
AT_ONCE = 25  # seconds; less than the 30 that Optuna's own lock may outlive its holder
# Trials of a process that will be killed: more than it can finish before.
ENDLESS = 10**6


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


def heard(pipe, seconds=600):
    assert pipe.poll(seconds), "no word from the process"
    return pipe.recv()


@pytest.fixture(params=["journal", "exclusive on a journal", "postgres", "sqlite"])
def storage_lock(request, tmp_path):
    """A place, and the name of one of its locks."""
    name = request.param
    if name == "postgres":
        return Place(request.getfixturevalue("postgres")(), tmp_path), "exclusive"
    if name == "sqlite":
        return Place(f"sqlite:///{tmp_path}/study.db", tmp_path), "exclusive"
    return Place(None, tmp_path), name.partition(" ")[0]


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def working(pipe, storage_place, count, name):
    run_trials(storage_place.study(), count, name)
    pipe.send("done")


def reading(pipe, storage_place):
    study = storage_place.study()
    for _ in iter(pipe.recv, None):
        pipe.send(told(study))


def test_trials_of_one_process_are_read_by_another(storage_place, start):
    study = storage_place.study()
    _, pipe = start(reading, storage_place)
    run_trials(study, 2)
    pipe.send("read")
    assert heard(pipe) == [["here", 0], ["here", 1]]
    run_trials(study, 1, "later")
    pipe.send("read")
    assert heard(pipe) == [["here", 0], ["here", 1], ["later", 0]]

    _, pipe = start(working, storage_place, 2, "there")
    assert heard(pipe) == "done"
    assert told(study) == [["here", 0], ["here", 1], ["later", 0], ["there", 0], ["there", 1]]
    trial = study.trials[-1]
    assert (trial.number, trial.value, trial.distributions["x"].high) == (4, 1.0, 1.0)


def opening(pipe, storage_place):
    pipe.send("ready")
    pipe.recv()
    pipe.send(joined(storage_place.open())._study_id)


def test_workers_that_start_together_create_one_study(storage_place, start):
    pipes = [start(opening, storage_place)[1] for _ in range(4)]
    assert [heard(pipe) for pipe in pipes] == ["ready"] * 4
    for pipe in pipes:
        pipe.send("go")
    assert len({heard(pipe) for pipe in pipes}) == 1


def torn_off(pipe, storage_place, bytes_left):
    """Is killed by the kernel in the middle of Optuna's write, while it holds the lock."""
    study = storage_place.study()
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    size = (storage_place.folder / "journal.log").stat().st_size
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + bytes_left, size + bytes_left))
    study.ask()


@pytest.mark.parametrize("bytes_left", [1, 40, 120])
def test_a_worker_that_dies_during_its_write(bytes_left, storage_journal, start):
    a, b = storage_journal.study(), storage_journal.study()
    run_trials(a, 1)
    # The study exists: joining it tries to create it, and that writes a record too.
    lines = content(storage_journal).count(b"\n")
    process, _ = start(torn_off, storage_journal, bytes_left)
    process.join()
    assert process.exitcode == -signal.SIGXFSZ
    head, _, tail = content(storage_journal).rpartition(b"\n")
    assert head.count(b"\n") + 1 == lines + 1 and len(tail) == bytes_left
    assert told(b) == [["here", 0]]
    run_trials(b, 1, "b")
    run_trials(a, 1, "a")
    assert told(a) == told(b) == [["a", 0], ["b", 0], ["here", 0]]


def holding(pipe, storage_place, storage_lock):
    """Reports when it waits, when it has the lock, and when it has released it."""
    held = storage_place.open()
    pipe.send("waits")
    if storage_lock == "journal":
        journal_lock = JournalLock(storage_place.folder / "journal.log")
        journal_lock.acquire()
        pipe.send("holds")
        pipe.recv()
        journal_lock.release()
    else:
        with held.exclusive():
            pipe.send("holds")
            pipe.recv()
    pipe.send("free")


def waiting(start, storage_place, storage_lock):
    process, pipe = start(holding, storage_place, storage_lock)
    assert heard(pipe) == "waits"
    return process, pipe


def has_not(pipe):
    """Whether nothing is reported in 0.3 s, so the process does not have the lock."""
    return not pipe.poll(0.3)


def test_a_killed_holder_frees_its_lock_at_once(storage_lock, start):
    holder, pipe = waiting(start, *storage_lock)
    assert heard(pipe) == "holds"
    if storage_lock[1] == "journal":
        # Opening reads the journal, which takes its lock, so the second cannot report that it waits.
        _, second = start(holding, *storage_lock)
    else:
        _, second = waiting(start, *storage_lock)
    assert has_not(second)
    kill(holder)
    words = [heard(second, AT_ONCE)]
    while words[-1] != "holds":
        words.append(heard(second, AT_ONCE))
    second.send("let go")
    assert heard(second) == "free"


def test_a_killed_waiter_does_not_get_the_lock(storage_lock, start):
    first, pipe = waiting(start, *storage_lock)
    assert heard(pipe) == "holds"
    dead, _silent = start(holding, *storage_lock)
    time.sleep(0.2)  # by now it waits
    kill(dead)
    third, last = start(holding, *storage_lock)
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


def counting(pipe, storage_place, rounds):
    held = storage_place.open()
    counter = storage_place.folder / "counter"
    for _ in range(rounds):
        with held.exclusive():
            count = int(counter.read_text())
            time.sleep(0.001)  # without the lock the others read the same number
            counter.write_text(str(count + 1))
    pipe.send("done")


def test_no_update_is_lost_under_exclusive(storage_place, start):
    (storage_place.folder / "counter").write_text("0")
    pipes = [start(counting, storage_place, 8)[1] for _ in range(3)]
    assert [heard(pipe) for pipe in pipes] == ["done"] * 3
    assert (storage_place.folder / "counter").read_text() == "24"


CLAIMS = 16


def claiming(pipe, storage_place, killed_at):
    """Claims number after number in a file. Kills itself while it holds the lock, once killed_at
    numbers are claimed."""
    held = storage_place.open()
    claims = storage_place.folder / "claims"
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


def test_claims_are_unique_though_claimants_are_killed_holding_the_lock(storage_place, start):
    (storage_place.folder / "claims").write_text("")
    killed = [start(claiming, storage_place, at)[0] for at in (0, 4, 8)]
    survivors = [start(claiming, storage_place, None)[1] for _ in range(2)]
    assert [heard(pipe) for pipe in survivors] == ["done"] * 2
    assert (storage_place.folder / "claims").read_text().split() == [str(n) for n in range(CLAIMS)]
    for process in killed:
        process.join()
        assert process.exitcode == -signal.SIGKILL


def test_an_exception_under_exclusive_frees_the_lock(storage_place, start):
    held = storage_place.open()
    with pytest.raises(ZeroDivisionError), held.exclusive():
        _ = 1 / 0
    _, pipe = waiting(start, storage_place, "exclusive")
    assert heard(pipe) == "holds"


def test_studies_in_one_database_have_locks_of_their_own(postgres, tmp_path, start):
    place = Place(postgres(), tmp_path)
    with place.open("another").exclusive():
        _, pipe = waiting(start, place, "exclusive")
        assert heard(pipe) == "holds"


# --- a storm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_a_storm_of_kills_leaves_a_journal_that_all_can_read(seed, storage_journal, start):
    randomness = random.Random(seed)
    watcher = storage_journal.study()
    counts = [ENDLESS, ENDLESS, 50, 50]
    processes = [start(working, storage_journal, count, f"w{n}") for n, count in enumerate(counts)]
    doomed = dict(enumerate(sorted(randomness.sample(range(100, 400), 2))))
    for number, lines in doomed.items():
        until(lambda lines=lines: content(storage_journal).count(b"\n") >= lines)
        kill(processes[number][0])
        torn, _ = start(torn_off, storage_journal, randomness.randrange(1, 120))
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
    assert told(watcher) == told(storage_journal.study())
    # Optuna's own reader, which other tools use, and every line by itself.
    plain = optuna.storages.JournalStorage(
        JournalFileBackend(
            str(storage_journal.folder / "journal.log"), JournalLock(storage_journal.folder / "x")
        )
    )
    assert told(optuna.load_study(storage=plain, study_name="s")) == told(watcher)
    assert all(isinstance(json.loads(line), dict) for line in content(storage_journal).splitlines())


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
