"""The timelines of videos, cached: how many frames each video has, and when each frame is shown."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import av
from torch.utils.data import Dataset

from eltlab.common.disk_cache import cache_dir, digest
from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.progress import Bar
from eltlab.common.text import printable_name
from eltlab.data.clips.open_video import error_reason, open_video, unreadable
from eltlab.data.content_hashes import file_stamps
from eltlab.data.readahead import read_ahead

VIDEOS_PER_WORKER = 8  # with fewer videos per worker, starting it takes longer than it saves
NAMED = 5  # how many unusable videos a message names after the first


class Timeline(NamedTuple):
    """Evenly spaced frames in the order in which they are shown. Times are in the stream's unit."""

    length: int  # frames
    first: int  # time of the first frame
    last: int  # time of the last frame
    timed: int  # 0: frames have no reliable times and must be counted from the start of the file

    def frame_at(self, time: int) -> int:
        if self.length == 1:
            return 0
        return round((time - self.first) * (self.length - 1) / (self.last - self.first))

    def time_of(self, frame: int) -> int:
        """When a frame is shown, rounded down."""
        return self.first + frame * (self.last - self.first) // max(self.length - 1, 1)


Timelines = dict[str, Timeline]  # by the name of the video


def read_timeline(path: Path) -> Timeline:
    """Reads the packets of a video without decoding them. Raises UserError if the video is cut short or
    damaged, or if its frames are not evenly spaced."""
    container, stream = open_video(path)
    times, packets, end = [], 0, 0.0
    is_avi = container.format.name == "avi"
    with container:
        try:
            for packet in container.demux():
                if not packet.size:  # the end of the file, or in AVI a frame that was dropped
                    continue
                if packet.is_corrupt:
                    raise unreadable(path, "cut short, or damaged")
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == stream.index:
                    packets += 1
                    if is_avi and packet.dts is not None:
                        # The frame count in AVI's header includes dropped frames, and so do its times.
                        packets = max(packets, packet.dts + 1)
                    if not packet.is_discard:  # an edit list may hide packets
                        times.append((packet.pts, packet.dts))
        except av.FFmpegError as error:
            raise unreadable(path, error_reason(error)) from error
        # Even an intact AVI may have a frame or two less than its header counts.
        if packets < stream.frames - 2 - stream.frames // 100:
            raise unreadable(path, f"cut short: {packets} of {stream.frames} frames")
        # Matroska stores no frame count, but a duration.
        if "matroska" in container.format.name and container.duration:
            duration = container.duration / av.time_base
            if end < 0.99 * duration - 0.1:
                raise unreadable(path, f"cut short: {end:.1f} of {duration:.1f} seconds")
        if not times:
            raise unreadable(path, "no frames")
        shown = [pts for pts, _ in times if pts is not None]
        complete = len(shown) == len(times)
        # AVI stores no presentation times. FFmpeg takes the decoding order for them if it cannot see
        # which frames are B frames: in H.264, and in MPEG-4 with two frames per packet (XviD).
        reordered = stream.codec_context.has_b_frames and is_avi
        made_up = reordered and shown == sorted(shown)
        if not complete:
            shown = [dts for _, dts in times if dts is not None]
    if len(shown) < len(times):
        return Timeline(len(times), 0, 0, timed=0)
    shown.sort()  # packets come in decoding order
    spacing = (shown[-1] - shown[0]) / max(len(shown) - 1, 1)
    # Rounding moves a time by less than one unit (slightly more if rounded twice). If a unit is a whole
    # frame, a missing frame moves its neighbours by almost half of one, hence the quarter.
    tolerance = min(1.1, spacing / 4)
    if any(abs(time - shown[0] - i * spacing) > tolerance for i, time in enumerate(shown)):
        raise UserError(
            f"{printable_name(path)}: frames at uneven times (variable frame rate); convert it with "
            "ffmpeg -i FILE -vf fps=25 OUT"
        )
    return Timeline(len(shown), shown[0], shown[-1], int(complete and not made_up))


def read_timelines(root: Path, names: list[str], workers: int) -> Timelines:
    """The timeline of each video, cached until its file changes. Raises one UserError for all bad videos."""
    path = cache_dir() / "clips" / f"{digest(str(root.resolve()), 'timelines, 2', av.__version__)}.json"
    stamps = file_stamps(root, names)
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
            finally:  # so that an interrupted run keeps what it has read
                write_atomic(path, json.dumps(cached))
    if unusable:
        raise_unusable(root, unusable)
    return {name: Timeline(*cached[name]["timeline"]) for name in names}


@dataclass
class _TimelineReader(Dataset):
    """Runs in the worker processes. An item is the timeline of a video, or the error message if it has none:
    a raised error would stop the other videos from being read."""

    root: Path

    def __getitem__(self, name: str) -> Timeline | str:
        try:
            return read_timeline(self.root / name)
        except UserError as error:
            return str(error)


def raise_unusable(root: Path, reasons: dict[str, str]) -> NoReturn:
    """Raises UserError with the reason for the first video and the names of the next; if there are many, all
    reasons are written to a file that the message names."""
    first, *more = reasons
    if not more:
        raise UserError(reasons[first])
    shown = ", ".join(map(printable_name, more[:NAMED]))
    if len(more) > NAMED:
        path = cache_dir() / "clips" / f"{digest(str(root.resolve()))}-refused.txt"
        write_atomic(path, "".join(f"{reason}\n" for reason in reasons.values()))
        shown += f", …; all of them with the reasons: {path}"
    raise UserError(f"{reasons[first]}; {len(more):,} more cannot be used: {shown}")
