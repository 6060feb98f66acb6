"""The timelines of many videos: each video is read once, and again only if its file changes."""

import json
from collections.abc import Iterator
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
from eltlab.data.clips.timeline import Timeline, read_timeline
from eltlab.data.readahead import read_ahead
from eltlab.data.sets.file_stamps import file_stamps

VIDEOS_PER_ITEM = 8  # videos that a worker reads at a time
NAMED = 5  # unusable videos that a message names, besides the first


def read_timelines(root: Path, names: list[str], workers: int) -> dict[str, Timeline]:
    """The timeline of each video. Raises UserError for all unusable videos at once."""
    key = digest(str(root.resolve()), "timelines, 2", av.__version__)
    path = cache_dir() / "clips" / f"{key}.json"
    stamps = {n: list(stamp) for n, stamp in zip(names, file_stamps(root, names), strict=True)}
    with file_lock(path.with_suffix(".lock")):
        cached: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        changed = [name for name in names if cached.get(name, {}).get("mark") != stamps[name]]
        unusable = {}
        try:
            for name, found in _read_videos(root, changed, workers):
                if isinstance(found, UserError):
                    unusable[name] = str(found)
                else:
                    cached[name] = {"mark": stamps[name], "timeline": found}
        finally:  # an interrupted run keeps the timelines that it has read
            if changed:
                write_atomic(path, json.dumps(cached))
    if unusable:
        raise_unusable(root, unusable)
    return {name: Timeline(*cached[name]["timeline"]) for name in names}


def raise_unusable(root: Path, reasons: dict[str, str]) -> NoReturn:
    """Raises UserError with the reason for the first video and the names of some more; if there are many,
    with a file of all reasons."""
    first, *more = reasons
    if not more:
        raise UserError(reasons[first])
    shown = ", ".join(map(printable_name, more[:NAMED]))
    if len(more) > NAMED:
        path = cache_dir() / "clips" / f"{digest(str(root.resolve()))}-refused.txt"
        write_atomic(path, "".join(f"{reason}\n" for reason in reasons.values()))
        shown += f", …; all of them with the reasons: {path}"
    raise UserError(f"{reasons[first]}; {len(more):,} more cannot be used: {shown}")


def _read_videos(
    root: Path, names: list[str], workers: int
) -> Iterator[tuple[str, Timeline | UserError]]:
    if not names:
        return
    items = [names[i : i + VIDEOS_PER_ITEM] for i in range(0, len(names), VIDEOS_PER_ITEM)]
    # A single item is read in this process.
    found = read_ahead(_TimelineReader(root), items, min(workers, len(items) - 1), pin=False)
    done = 0
    with Bar("count frames", len(names), unit="videos") as bar:
        for item, timelines in zip(items, found, strict=True):
            yield from zip(item, timelines, strict=True)
            done += len(item)
            bar.update(done)


class _TimelineReader(Dataset):
    """Runs in the worker processes; an item is a list of names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, names: list[str]) -> list[Timeline | UserError]:
        return [self._read(name) for name in names]

    def _read(self, name: str) -> Timeline | UserError:
        try:
            return read_timeline(self.root / name)
        except UserError as error:
            return error  # one broken video must not hide the others
