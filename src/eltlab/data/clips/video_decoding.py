"""One video file, through PyAV: how many frames it has, and any of them as pictures."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
from av.stream import Disposition
from av.video.reformatter import Interpolation
from PIL import Image

from eltlab.common.errors import UserError, first_line
from eltlab.common.text import printable_name

BACK = (0, 16, 256)  # frames before the wanted one at which its key frame is looked for
# Exact, so that every processor's vector units make the same pixels.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


class Timeline(NamedTuple):
    """The frames of a video, in the order in which they are shown."""

    length: int
    first: int  # when the first is shown, and the last, in the stream's unit
    last: int
    timed: int  # 0: decoded frames do not say when they are shown, and are counted from the start

    def place(self, time: int) -> int:
        """Which frame is shown at a time: they are evenly spaced."""
        if self.length == 1:
            return 0
        return round((time - self.first) * (self.length - 1) / (self.last - self.first))

    def time(self, place: int) -> int:
        """When a frame is shown, to the unit."""
        return self.first + place * (self.last - self.first) // max(self.length - 1, 1)


def scan(path: Path) -> Timeline:
    """From the packets; nothing is decoded. Raises UserError for a video that is cut short or damaged,
    or whose frames lie at uneven times."""
    container, stream = opened(path)
    times, packets, end = [], 0, 0.0
    avi = container.format.name == "avi"
    with container:
        try:
            for packet in container.demux():
                if not packet.size:  # the end; in AVI a frame that was dropped
                    continue
                if packet.is_corrupt:
                    raise damaged(path, "cut short, or damaged")
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == stream.index:
                    packets += 1
                    if avi and packet.dts is not None:
                        # Its header counts the frames that were dropped, and so do its times.
                        packets = max(packets, packet.dts + 1)
                    if not packet.is_discard:  # outside the part that an edit list shows
                        times.append((packet.pts, packet.dts))
        except av.FFmpegError as error:
            raise damaged(path, _reason(error)) from error
        # AVI's header and a sound file's clock may differ by a frame or so; what is cut off is more.
        if packets < stream.frames - 2 - stream.frames // 100:
            raise damaged(path, f"cut short: {packets} of {stream.frames} frames")
        if "matroska" in container.format.name and container.duration:
            length = container.duration / av.time_base
            if end < 0.99 * length - 0.1:
                raise damaged(path, f"cut short: {end:.1f} of {length:.1f} seconds")
        if not times:
            raise damaged(path, "no frames")
        shown = [pts for pts, _ in times if pts is not None]
        complete = len(shown) == len(times)
        # AVI knows no times of showing, and FFmpeg makes them up from the order of decoding where it does
        # not see which frames are B frames: H.264, and MPEG-4 whose packets hold two frames (XviD's).
        reordered = stream.codec_context.has_b_frames and avi
        made_up = reordered and shown == sorted(shown)
        if not complete:
            shown = [dts for _, dts in times if dts is not None]
    if len(shown) < len(times):
        return Timeline(len(times), 0, 0, timed=0)
    shown.sort()
    if not _even(shown):
        raise UserError(
            f"{printable_name(path)}: frames at uneven times (variable frame rate); make them even by "
            "ffmpeg -i FILE -vf fps=25 OUT"
        )
    timed = complete and not made_up
    return Timeline(len(shown), shown[0], shown[-1], int(timed))


def _even(times: list[int]) -> bool:
    """Whether ascending times are evenly spaced, but for the rounding to the stream's unit."""
    count = len(times) - 1
    if not count:
        return True
    spacing = (times[-1] - times[0]) / count
    # Rounding moves a time by less than a unit (twice rounded, a little more). Where a unit is a whole
    # frame, a frame that was left out moves its neighbours by nearly half of one.
    most = min(1.1, spacing / 4)
    return all(abs(time - times[0] - i * spacing) <= most for i, time in enumerate(times))


class Video:
    """An open video. Frames are cheapest in ascending order, and nearly free of detours where each
    stretch begins near the end of the one before."""

    def __init__(self, path: Path, timeline: Timeline) -> None:
        self.path, self.timeline = path, timeline
        self.container, self.stream = opened(path)
        self.running: Iterator[tuple[int, av.VideoFrame]] | None = None
        self.next = 0  # the frame that running gives next
        self.seeks = bool(timeline.timed)

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.running = None
        self.container.close()

    def frames(self, wanted: range) -> list[av.VideoFrame]:
        """Frames of these places, as decoding from the start gives them. Raises UserError."""
        ahead = wanted[0] - self.next
        near = not self.seeks or ahead <= wanted[-1] - wanted[0]
        try:
            if self.running is None or ahead < 0 or not near:
                self.running = self._from_key(wanted[0]) if self.seeks else self._from_start()
            return self._take(wanted)
        except _Lost as lost:
            if not self.seeks:
                raise damaged(self.path, str(lost)) from lost
        # Its key frames do not begin anew, or its times are not those of its frames.
        self.seeks = False
        try:
            self.running = self._from_start()
            return self._take(wanted)
        except _Lost as lost:
            raise damaged(self.path, str(lost)) from lost

    def _take(self, wanted: range) -> list[av.VideoFrame]:
        assert self.running is not None
        found = []
        try:
            for place, frame in self.running:
                self.next = place + 1
                if place in wanted:
                    if frame.is_corrupt:
                        raise _Lost(f"frame {place} is damaged")
                    found.append(frame)
                if place >= wanted[-1]:
                    break
        except av.FFmpegError as error:
            raise _Lost(f"near frame {self.next}: {_reason(error)}") from error
        if len(found) < len(wanted):
            raise _Lost(f"frames {wanted[0]} to {wanted[-1]} cannot all be decoded")
        return found

    def _from_key(self, place: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames from the key frame before this place (or an earlier one) on. Raises _Lost."""
        for back in BACK:
            time = self.timeline.time(max(place - back, 0))
            packets = self.container.demux(self.stream)
            try:
                self.container.seek(time, stream=self.stream, backward=True)
                first = next(packets)
            except av.FFmpegError:
                continue
            # A seek goes by times of decoding, so it may land on a key frame that is shown later.
            if first.pts is not None and first.is_keyframe:
                key = self.timeline.place(first.pts)
                if key <= place:
                    return self._decoded(chain([first], packets), key)
        return self._from_start()

    def _from_start(self) -> Iterator[tuple[int, av.VideoFrame]]:
        self.container.close()
        self.container, self.stream = opened(self.path)
        self.next = 0
        return self._decoded(self.container.demux(self.stream), None)

    def _decoded(
        self, packets: Iterator[av.Packet], key: int | None
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Each frame with its place, from a key frame's on; None: from the start of the file."""
        expected = key
        for packet in packets:
            if not packet.size and packet.dts is not None:
                continue  # to the decoder it would mean the end
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                if not self.timeline.timed:
                    place = expected or 0
                elif frame.pts is None:
                    raise _Lost("a frame that does not say when it is shown")
                else:
                    place = self.timeline.place(frame.pts)
                if place != (place if expected is None else expected):
                    raise _Lost(f"frame {expected} is missing")
                expected = place + 1
                yield place, frame


class _Lost(Exception):
    """Frames did not come as they should have."""


def picture(frame: av.VideoFrame) -> Image.Image:
    """Upright, as a player shows it; pixels are taken to be square."""
    alpha = any(part.is_alpha for part in frame.format.components)
    plain = frame.reformat(
        format="rgba" if alpha else "rgb24",
        interpolation=EXACT,
        threads=1,
    )
    image = Image.fromarray(plain.to_ndarray())
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def opened(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The file and its video, to be decoded by one thread. Raises UserError."""
    try:
        # Some formats are lists of further files; none may lead to the network. Names of authors and
        # titles need not be UTF-8.
        container = av.open(
            str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise damaged(path, _reason(error)) from error
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            stream.codec_context.thread_count = 1  # there is a process for each worker
            return container, stream
    container.close()
    raise UserError(
        f"{printable_name(path)}: holds no video that can be decoded; mend it or take it away"
    )


def damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{printable_name(path)}: not a readable video ({reason}); mend it or take it away"
    )


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
