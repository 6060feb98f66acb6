"""Hashes of files: they follow the bytes alone, and a file is read once until it changes."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.errors import fails
from support.image_files import encoded, noise, zipped

from eltlab.common.disk_cache import cache_dir
from eltlab.common.files import file_lock
from eltlab.data import content_hashes as module
from eltlab.data.content_hashes import content_hashes

NAMES = [f"{label}/{i}.bmp" for label in "ab" for i in range(6)]


@pytest.fixture
def root(tmp_path) -> Path:
    """Bitmaps of equal size."""
    for seed, name in enumerate(NAMES):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(seed), "BMP"))
    return tmp_path / "set"


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[str]:
    """The names of the files that were read, with an empty cache."""
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    names, real = [], module._hash_file

    def hash_and_note(root: Path, archive: object, name: str) -> str:
        names.append(name)
        return real(root, archive, name)

    monkeypatch.setattr(module, "_hash_file", hash_and_note)
    return names


def index_of(tmp_path: Path) -> Path:
    [path] = (tmp_path / "cache/hashes").glob("*.jsonl")  # one file for the whole root
    return path


def test_each_file_is_read_once(root, tmp_path, read):
    first = content_hashes(root, NAMES)
    assert sorted(read) == NAMES and len(set(first)) == len(NAMES)
    assert content_hashes(root, NAMES[::-1]) == first[::-1]
    assert len(read) == len(NAMES) and index_of(tmp_path).is_file()


def test_a_changed_file_is_read_again_even_if_name_size_and_time_are_equal(root, read):
    first = content_hashes(root, NAMES)
    path = root / NAMES[3]
    stat = path.stat()
    path.write_bytes(encoded(noise(99), "BMP"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    after = content_hashes(root, NAMES)
    assert [one != other for one, other in zip(first, after, strict=True)] == [n == NAMES[3] for n in NAMES]
    assert read[len(NAMES) :] == [NAMES[3]]
    os.utime(path)  # touched: it is read, and its hash stays
    assert content_hashes(root, NAMES) == after and read[len(NAMES) :] == [NAMES[3]] * 2


def test_copies_and_zips_have_the_same_hashes(root, tmp_path, read):
    first = content_hashes(root, NAMES)
    copy = Path(shutil.copytree(root, tmp_path / "elsewhere/copy"))
    assert content_hashes(copy, NAMES) == first
    archive = zipped(root, tmp_path / "set.zip", "top/")
    for _ in range(2):
        assert content_hashes(archive, [f"top/{name}" for name in NAMES]) == first
    assert len(read) == 3 * len(NAMES)


def test_what_was_read_before_an_interruption_is_kept(root, tmp_path, read, monkeypatch):
    counted = module._hash_file

    def interrupted(root: Path, archive: object, name: str) -> str:
        if name == NAMES[7]:
            raise KeyboardInterrupt
        return counted(root, archive, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_hash_file", interrupted)
        content_hashes(root, NAMES)
    read.clear()
    whole = content_hashes(root, NAMES)
    assert sorted(read) == NAMES[7:]
    path = index_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])  # a kill cut the last record short
    read.clear()
    assert content_hashes(root, NAMES) == content_hashes(root, NAMES) == whole
    assert read == [NAMES[-1]]


def test_others_wait_for_whoever_reads(root, read):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: content_hashes(root, NAMES), range(4)))
    assert all(result == results[0] for result in results) and len(read) == len(NAMES)


def test_files_are_looked_at_without_the_lock(root, tmp_path, read, monkeypatch):
    content_hashes(root, NAMES)
    real, free = module.file_stamps, []

    def stamps(*arguments):
        with file_lock(index_of(tmp_path).with_suffix(".lock"), wait=False) as acquired:
            free.append(acquired)
        return real(*arguments)

    monkeypatch.setattr(module, "file_stamps", stamps)
    content_hashes(root, NAMES)
    assert free == [True]


def test_records_of_changed_files_do_not_pile_up(root, tmp_path, read, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    whole = content_hashes(root, NAMES)
    for _ in range(6):
        for name in NAMES:
            os.utime(root / name)
        assert content_hashes(root, NAMES) == whole
    assert len(index_of(tmp_path).read_text().split("\n")) < 4 * len(NAMES)


def test_a_missing_file_is_named(root):
    (root / NAMES[2]).unlink()
    message = fails(content_hashes, root, NAMES)
    assert message == f"{root / NAMES[2]}: not readable (No such file or directory)"
    assert cache_dir().is_dir()


def test_a_long_first_reading_is_announced(root, capsys, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 100)
    content_hashes(root, NAMES)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{root}: 12 files are read once (") and "identify the set" in line
    content_hashes(root, NAMES)
    assert not capsys.readouterr().err
