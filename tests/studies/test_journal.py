"""The journal of a study: a torn line is cut, and nothing else is."""

import os
import threading

import pytest
from support.storages import content, joined, run_trials, told

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock
from eltlab.studies.journal import Journal, JournalLock

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


def append(storage_place, torn):
    with (storage_place.folder / "journal.log").open("ab") as file:
        file.write(torn)


@torn_by
def test_opening_a_journal_cuts_a_torn_line_and_nothing_else(torn, storage_journal):
    run_trials(storage_journal.study(), 2)
    before = content(storage_journal)
    append(storage_journal, torn)
    storage = storage_journal.open()
    assert content(storage_journal) == before
    run_trials(joined(storage), 1, "after")
    assert told(storage_journal.study()) == [["after", 0], ["here", 0], ["here", 1]]


@pytest.mark.parametrize("torn", [b"", *TORN.values()], ids=["empty", *TORN])
def test_a_journal_with_only_a_torn_line_is_empty(torn, storage_journal):
    append(storage_journal, torn)
    study = storage_journal.study()
    run_trials(study, 1)
    assert told(study) == told(storage_journal.study()) == [["here", 0]]
    assert content(storage_journal).startswith(b'{"op_code":0')


@torn_by
@pytest.mark.parametrize("first", ["reads", "writes"])
def test_a_line_torn_under_open_journals_loses_nothing_else(torn, first, storage_journal):
    a, b = storage_journal.study(), storage_journal.study()
    expected = []

    def write(study, name):
        run_trials(study, 1, name)
        expected.append([name, 0])

    write(a, "a0")
    assert told(b) == expected
    write(b, "b0")
    append(storage_journal, torn)
    if first == "reads":
        # Both remember their offsets before the other's append cuts the line.
        assert told(a) == told(b) == expected
    for name in ("a1", "a2"):
        write(a, name)
    assert told(b) == sorted(expected)
    append(storage_journal, torn)
    write(b, "b1")
    write(a, "a3")
    assert told(a) == told(b) == told(storage_journal.study()) == sorted(expected)
    assert [trial.number for trial in a.trials] == list(range(6))


def test_a_file_that_is_no_journal_keeps_its_lines(storage_journal):
    lines = b"".join(b"line %d\n" % number for number in range(5))
    append(storage_journal, lines)
    with pytest.raises(UserError, match="line 1 is"):
        storage_journal.open()
    assert content(storage_journal).count(b"\n") >= 4


def test_a_cut_and_an_append_are_flushed_while_the_journal_is_locked(tmp_path, monkeypatch):
    path, flushed = tmp_path / "journal.log", []
    path.write_bytes(b'{}\n{"torn')

    def fsync(descriptor):
        with file_lock(path.with_suffix(".flock"), wait=False) as free:
            flushed.append((os.fstat(descriptor).st_size, free))

    monkeypatch.setattr(os, "fsync", fsync)
    Journal(path).append_logs([{"x": 1}])
    assert path.read_bytes() == b'{}\n{"x":1}\n'
    assert flushed == [(3, False), (11, False)]


def test_readers_wait_for_the_writer(storage_journal):
    """Otherwise a reader could join half of a line that is cut with half of the next one."""
    study = storage_journal.study()
    lock = JournalLock(storage_journal.folder / "journal.log")
    lock.acquire()
    reader = threading.Thread(target=lambda: study.trials)
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    lock.release()
    reader.join(600)
    assert not reader.is_alive()
