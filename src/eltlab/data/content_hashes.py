"""Hashes of the files of a set: read once, then found in one index per root. Imports no torch."""

import hashlib
import json
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from eltlab.common.disk_cache import cache_dir, digest
from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.progress import Bar
from eltlab.common.text import format_bytes, printable_name

THREADS = 16  # more than cores: files on a network disk are waited for
CHUNK = 4096  # files to hand to the threads at a time
LARGE = 2**30  # bytes; whoever waits for more is told why

Stamp = list[int]
Index = dict[str, tuple[Stamp, str]]  # a file's stamp and hash, by its name


def content_hashes(root: Path, names: list[str]) -> list[str]:
    """The hash of each file below the folder root, or of each entry of the zip root.

    They depend on the bytes alone: a copy has the same hashes, and so have a folder and a zip of it. A file
    is read again if its stamp has changed. Raises UserError if a file is missing or damaged.
    """
    path = cache_dir() / "hashes" / f"{digest(str(root.resolve()))}.jsonl"
    stamps = file_stamps(root, names)  # without the lock: processes look at the files at the same time
    with file_lock(path.with_suffix(".lock")):  # other processes wait and then read the index
        index = _read_index(path)
        changed = {n: stamp for n, stamp in stamps.items() if n not in index or index[n][0] != stamp}
        if changed:
            _read_files(root, changed, index, path)
    return [index[name][1] for name in names]


def part_contents(root: Path, names: list[str], separator: str) -> list[str]:
    """What identifies the bytes of parts of files below root: HASH#3 for FILE#3, if # is the separator.
    Raises UserError."""
    cut = [name.rpartition(separator) for name in names]
    files = list(dict.fromkeys(file for file, _, _ in cut))
    hashes = dict(zip(files, content_hashes(root, files), strict=True))
    return [f"{hashes[file]}{separator}{part}" for file, _, part in cut]


def file_stamps(root: Path, names: list[str]) -> dict[str, Stamp]:
    """[bytes, time of the last change] of each file, or of the zip root: they differ if the content does."""
    # The time of the inode's last change, because programs can set that of the modification.
    try:
        if root.is_file():
            return dict.fromkeys(names, _stamp(root))
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(names, pool.map(_stamp, (root / name for name in names)), strict=True))
    except OSError as error:
        place = printable_name(error.filename or root)
        raise UserError(f"{place}: not readable ({error.strerror})") from error


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return [stat.st_size, stat.st_ctime_ns]


def _read_files(root: Path, changed: dict[str, Stamp], index: Index, path: Path) -> None:
    """Hashes the changed files in threads, and appends them to the index in memory and on disk."""
    names, archive = list(changed), zipfile.ZipFile(root) if root.is_file() else None
    threads = THREADS if archive is None else 1  # a ZipFile counts its open entries without a lock
    size = root.stat().st_size if archive else sum(stamp[0] for stamp in changed.values())
    if size > LARGE:
        print(
            f"{root}: {len(changed):,} files are read once ({format_bytes(size)}), to identify the set by "
            "its content",
            file=sys.stderr,
        )
    read = partial(_hash_file, root, archive)
    with (
        path.open("a", buffering=1) as file,
        ThreadPoolExecutor(threads) as pool,
        Bar(f"hash {root.name}", len(names), unit="files") as bar,
    ):
        for first in range(0, len(names), CHUNK):
            part = names[first : first + CHUNK]
            for done, (name, found) in enumerate(zip(part, pool.map(read, part), strict=True), first + 1):
                index[name] = changed[name], found
                # A new line starts each record: what a kill left of the last one is a line of its own.
                file.write("\n" + json.dumps([name, changed[name], found]))
                bar.update(done)


def _hash_file(root: Path, archive: zipfile.ZipFile | None, name: str) -> str:
    try:
        with archive.open(name) if archive is not None else (root / name).open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()  # type: ignore[arg-type]
    except Exception as error:  # zipfile raises many kinds
        place = printable_name(root / name if archive is None else f"{root}, {name}")
        raise UserError(f"{place}: not readable ({error})") from error


def _read_index(path: Path) -> Index:
    """The stored index; a record replaces earlier ones of its file."""
    index: Index = {}
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    for line in lines:
        record = _parse(line)
        if record is not None:
            name, stamp, found = record
            index[name] = stamp, found
    if len(lines) > 2 * len(index) + CHUNK:  # mostly records of files that have changed since
        records = ("\n" + json.dumps([name, *entry]) for name, entry in index.items())
        write_atomic(path, "".join(records))
    return index


def _parse(line: str) -> Any:
    """A record, or None if a kill cut it short."""
    try:
        return json.loads(line)
    except ValueError:
        return None
