"""The timelines of many videos: each is gone through once, and then read from the cache until it changes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import av
from torch.utils.data import Dataset

from eltlab.common.atomic_files import write_atomic
from eltlab.common.cache import cache_dir
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.common.hashing import digest
from eltlab.common.progress import Bar
from eltlab.common.text import printable_name
from eltlab.data.clips.video_decoding import Timeline, scan
from eltlab.data.readahead import read_ahead
from eltlab.data.sets.folders import stamps

SCANNED = 8  # videos that a worker goes through at a time
NAMED = 5  # of those that are refused


def timelines_of(root: Path, names: list[str], workers: int) -> dict[str, Timeline]:
    """Of each video its timeline. Raises UserError for those that cannot be used, after all were gone
    through."""
    key = digest(str(root.resolve()), "timelines, 2", av.__version__)
    path = cache_dir() / "clips" / f"{key}.json"
    marks = {name: list(mark) for name, mark in zip(names, stamps(root, names), strict=True)}
    with file_lock(path.with_suffix(".lock")):
        known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        fresh = [name for name in names if known.get(name, {}).get("mark") != marks[name]]
        refused = {}
        try:
            for name, found in _scanned(root, fresh, workers):
                if isinstance(found, UserError):
                    refused[name] = found
                else:
                    known[name] = {"mark": marks[name], "timeline": found}
        finally:  # what was counted before an interrupt is not counted again
            if fresh:
                write_atomic(path, json.dumps(known))
    if refused:
        refuse(root, {name: str(error) for name, error in refused.items()})
    return {name: Timeline(*known[name]["timeline"]) for name in names}


def refuse(root: Path, reasons: dict[str, str]) -> NoReturn:
    """Raises UserError for videos of this folder that cannot be used: why the first cannot, and which
    others; of many a file that says all."""
    first, *more = reasons
    if not more:
        raise UserError(reasons[first])
    shown = ", ".join(map(printable_name, more[:NAMED]))
    if len(more) > NAMED:
        path = cache_dir() / "clips" / f"{digest(str(root.resolve()))}-refused.txt"
        write_atomic(path, "".join(f"{reason}\n" for reason in reasons.values()))
        shown += f", …; all of them, and why: {path}"
    raise UserError(f"{reasons[first]}; {len(more):,} more cannot be used: {shown}")


def _scanned(
    root: Path, names: list[str], workers: int
) -> Iterator[tuple[str, Timeline | UserError]]:
    if not names:
        return
    parts = [names[first : first + SCANNED] for first in range(0, len(names), SCANNED)]
    scanned = read_ahead(_Scanner(root), parts, min(workers, len(parts) - 1), pin=False)
    done = 0
    with Bar("count frames", len(names), unit="videos") as bar:
        for part, found in zip(parts, scanned, strict=True):
            yield from zip(part, found, strict=True)
            done += len(part)
            bar.update(done)


@dataclass
class _Scanner(Dataset):
    """What travels to the worker processes; item: names of videos."""

    root: Path

    def __getitem__(self, names: list[str]) -> list[Timeline | UserError]:
        return [self.scanned(name) for name in names]

    def scanned(self, name: str) -> Timeline | UserError:
        try:
            return scan(self.root / name)
        except UserError as error:
            return error
