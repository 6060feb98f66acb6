"""Locks on files, and writes that leave either the old file or the new one."""

import os
import platform

import pytest

from eltlab.common.files import atomic_path, file_lock, write_atomic
from eltlab.studies.journal import JournalLock


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_holder_has_a_lock_until_its_block_ends(tmp_path):
    path = tmp_path / "new" / "lock"
    with pytest.raises(KeyError), file_lock(path) as first:
        with file_lock(path, wait=False) as second:
            assert first and not second
        raise KeyError
    with file_lock(path, wait=False) as again:
        assert again


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "text"
    write_atomic(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old" and names(path.parent) == ["text"]
    write_atomic(path, b"new")
    assert path.read_text() == "new" and names(path.parent) == ["text"]


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    """Else a power failure could leave the new name with an empty file."""
    calls = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, lambda file, *_, name=name: calls.append((name, os.stat(file).st_ino)))
    write_atomic(tmp_path / "text", "new")
    (first, flushed), (second, renamed) = calls
    assert (first, second) == ("fsync", "replace") and flushed == renamed


def test_the_first_of_two_writers_keeps_its_file(tmp_path):
    path, lock = tmp_path / "text", tmp_path / "lock"
    with atomic_path(path, keep=lock) as temporary:
        temporary.write_text("second")
        path.write_text("first")
    assert path.read_text() == "first" and names(tmp_path) == ["lock", "text"]


def test_an_error_names_the_file_that_the_user_knows(tmp_path):
    path = tmp_path / "text"
    with pytest.raises(FileNotFoundError) as caught, atomic_path(path):
        pass  # nothing is written
    assert caught.value.filename == str(path) and caught.value.filename2 is None


def test_leftovers_of_killed_writers_are_removed_and_other_files_are_not(tmp_path):
    host, dead = platform.node(), 2**22 + 1  # process ids are at most 2**22
    kept = [f".text.{host}.{os.getppid()}.tmp", f".text.elsewhere.{dead}.tmp", f".text.{host}.mine.tmp"]
    for name in [*kept, f".text.{host}.{dead}.tmp"]:
        (tmp_path / name).touch()
    write_atomic(tmp_path / "text", "new")
    assert names(tmp_path) == sorted([*kept, "text"])


@pytest.mark.integration
def test_a_forked_child_does_not_keep_the_journals_lock(storage_journal):
    lock = JournalLock(storage_journal.folder / "journal.log")
    lock.acquire()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)  # until the parent closes its end
        os._exit(0)
    lock.release()
    with file_lock(storage_journal.folder / "journal.flock", wait=False) as free:
        assert free
    os.close(theirs)
    os.close(ours)
    os.waitpid(child, 0)
