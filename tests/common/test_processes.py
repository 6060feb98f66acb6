"""How child processes are terminated, and how they end with their parent."""

import os
import select
import signal
import subprocess
import time

import pytest
from support.commands import fork

from eltlab.common.processes import Fork, cores, die_with_parent, terminate

LONG = 600.0  # seconds; none of the children lives that long

integration = pytest.mark.integration


def read(descriptor: int) -> bytes:
    """The next bytes of a pipe; none if all writers have ended."""
    assert select.select([descriptor], [], [], LONG)[0]
    return os.read(descriptor, 100)


def start_child(ignored: tuple[signal.Signals, ...] = ()) -> Fork:
    """A child that leads its process group and has set up its signals."""
    ours, theirs = os.pipe()

    def work() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        os.write(theirs, b"ready")
        time.sleep(LONG)

    child = Fork(fork(work, {}, session=True))
    assert read(ours) == b"ready"
    os.close(ours)
    os.close(theirs)
    return child


def test_the_cores_are_those_that_this_process_may_use():
    assert 1 <= cores() <= os.cpu_count()


@integration
@pytest.mark.parametrize("code", [0, 3])
def test_a_fork_has_its_exit_code_once_it_has_ended(code):
    ours, theirs = os.pipe()

    def work() -> None:
        os.close(theirs)
        os.read(ours, 1)  # until the parent closes its end
        raise SystemExit(code)

    child = Fork(fork(work, {}, session=True))
    assert child.poll() is None
    os.close(theirs)
    os.close(ours)
    while child.poll() is None:
        time.sleep(0.01)
    assert child.poll() == child.code == code


@integration
def test_children_get_sigterm_and_the_stubborn_ones_sigkill():
    polite, stubborn, ended = start_child(), start_child((signal.SIGTERM,)), start_child()
    terminate([ended], LONG)
    terminate([polite, ended], LONG)
    terminate([stubborn, ended], 0.1)
    codes = [child.poll() for child in (polite, stubborn, ended)]
    assert codes == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM]


@integration
def test_the_children_of_a_child_are_terminated_with_it():
    ours, theirs = os.pipe()
    script = "sleep 600 & echo ready; wait"
    child = subprocess.Popen(["sh", "-c", script], stdout=theirs, start_new_session=True)
    os.close(theirs)
    assert read(ours) == b"ready\n"
    terminate([child], LONG)
    assert child.poll() == -signal.SIGTERM
    assert read(ours) == b""  # `sleep` had the pipe open too
    os.close(ours)


@integration
def test_a_process_dies_with_its_parent():
    ours, theirs = os.pipe()

    def parent() -> None:
        me = os.getpid()

        def work() -> None:
            die_with_parent(me, signal.SIGKILL)
            os.write(theirs, b"ready")
            time.sleep(LONG)

        fork(work, {}, session=True)
        time.sleep(LONG)

    child = Fork(fork(parent, {}, session=True))
    os.close(theirs)
    assert read(ours) == b"ready"
    os.kill(child.pid, signal.SIGKILL)
    assert read(ours) == b""
    os.close(ours)
    while child.poll() is None:
        time.sleep(0.01)


@integration
def test_a_process_whose_parent_died_before_the_call_ends_at_once():
    child = Fork(fork(lambda: die_with_parent(os.getpid(), signal.SIGKILL), {}, session=True))
    while child.poll() is None:
        time.sleep(0.01)
    assert child.poll() == 1
