"""The timelines of many videos: each video is read once, and again only if its file changes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import av
from torch.utils.data import Dataset

from eltlab.common.cache import cache_dir, digest
from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.progress import Bar
from eltlab.common.text import printable_name
from eltlab.data.clips.timeline import Timeline, Timelines, read_timeline
from eltlab.data.readahead import read_ahead
from eltlab.data.sets.file_stamps import file_stamps

VIDEOS_PER_WORKER = 8  # with fewer videos per worker, starting it takes longer than it saves
NAMED = 5  # unusable videos that a message names, besides the first


def read_timelines(root: Path, names: list[str], workers: int) -> Timelines:
    """The timeline of each video. Raises UserError for all unusable videos at once."""
    key = digest(str(root.resolve()), "timelines, 2", av.__version__)
    path = cache_dir() / "clips" / f"{key}.json"
    stamps = {n: list(stamp) for n, stamp in zip(names, file_stamps(root, names), strict=True)}
    with file_lock(path.with_suffix(".lock")):
        cached: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        changed = [name for name in names if cached.get(name, {}).get("mark") != stamps[name]]
        workers = min(workers, (len(changed) - 1) // VIDEOS_PER_WORKER)
        unusable = {}
        if changed:
            try:
                timelines = read_ahead(_TimelineReader(root), changed, workers, pin=False)
                with Bar("count frames", len(changed), unit="videos") as bar:
                    for done, (name, found) in enumerate(zip(changed, timelines, strict=True), 1):
                        if isinstance(found, str):
                            unusable[name] = found
                        else:
                            cached[name] = {"mark": stamps[name], "timeline": found}
                        bar.update(done)
            finally:  # an interrupted run keeps the timelines that it has read
                write_atomic(path, json.dumps(cached))
    if unusable:
        raise_unusable(root, unusable)
    return {name: Timeline(*cached[name]["timeline"]) for name in names}


@dataclass
class _TimelineReader(Dataset):
    """Runs in the worker processes. An item is the timeline of a video, or the reason why it has none: if
    the error were raised, it would hide those of other videos."""

    root: Path

    def __getitem__(self, name: str) -> Timeline | str:
        try:
            return read_timeline(self.root / name)
        except UserError as error:
            return str(error)


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
