"""Files of the cache are made once, and only whole."""

from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from eltlab.common.disk_cache import cache_dir, cached_array, digest, make_once
from eltlab.evaluation.features import load_or_make


def test_the_cache_is_the_folder_of_the_variable_or_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("ELTLAB_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "eltlab"


def test_an_interrupted_computation_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_make(fail, "a")
    assert load_or_make(lambda: np.array(1.5), "a") == 1.5 == load_or_make(fail, "a")


def test_a_file_appears_whole_and_is_made_once(tmp_path):
    path, made = tmp_path / "made.txt", []

    def make(temporary: Path) -> None:
        temporary.write_text("half")
        assert not path.exists()
        made.append(temporary)
        if len(made) == 1:
            raise OSError("the disk is full")
        temporary.write_text("whole")

    with pytest.raises(OSError, match="full"):
        make_once(path, make)
    assert not path.exists()
    make_once(path, make)
    make_once(path, make)
    assert path.read_text() == "whole" and len(made) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made.lock", "made.txt"]


@pytest.mark.parametrize("mapped", [False, True])
def test_changes_of_a_cached_array_do_not_reach_its_file(tmp_path, mapped):
    def write(file) -> None:
        np.save(file, np.arange(4))

    first = cached_array(tmp_path / "array.npy", write, mapped)
    assert isinstance(first, np.memmap) == mapped
    first[:] = 0
    assert cached_array(tmp_path / "array.npy", write, mapped).tolist() == [0, 1, 2, 3]


def test_a_digest_covers_type_shape_and_numbers():
    numbers = np.arange(6)
    others = [numbers.reshape(2, 3), numbers.astype(np.int32), numbers + 1, "012345", ""]
    assert len({digest(part) for part in [numbers, *others]}) == 6
    assert digest(numbers, 1) == digest(np.arange(12)[:6].copy(), 1) != digest(1, numbers)
    columns = np.asfortranarray(numbers.reshape(2, 3))
    assert digest(columns) == digest(numbers.reshape(2, 3))  # the order in memory does not count


def test_whoever_needs_a_file_that_is_being_made_waits_for_it(tmp_path):
    path, calls, second_call = tmp_path / "made.txt", [], Event()

    def make(temporary: Path) -> None:
        calls.append(temporary)
        if len(calls) == 1:
            second.start()
            second_call.wait(0.5)  # the whole time, unless the second makes it too
        else:
            second_call.set()
        temporary.write_text("whole")

    second = Thread(target=make_once, args=(path, make))
    make_once(path, make)
    second.join()
    assert len(calls) == 1 and path.read_text() == "whole"
