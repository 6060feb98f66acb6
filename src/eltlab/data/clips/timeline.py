"""The timeline of a video: how many frames it has, and when each is shown."""

from pathlib import Path
from typing import NamedTuple

import av

from eltlab.common.errors import UserError
from eltlab.common.text import printable_name
from eltlab.data.clips.open_video import error_reason, open_video, unreadable


class Timeline(NamedTuple):
    """Frames in the order in which they are shown, evenly spaced. Times are in the stream's unit."""

    length: int
    first: int  # time of the first frame
    last: int  # time of the last frame
    timed: int  # 0: frames have no reliable times, and are counted from the start of the file

    def frame_at(self, time: int) -> int:
        """The frame that is shown at a time."""
        if self.length == 1:
            return 0
        return round((time - self.first) * (self.length - 1) / (self.last - self.first))

    def time_of(self, frame: int) -> int:
        """The time at which a frame is shown, rounded down."""
        return self.first + frame * (self.last - self.first) // max(self.length - 1, 1)


Timelines = dict[str, Timeline]  # by the name of the video


def read_timeline(path: Path) -> Timeline:
    """Reads the packets of a video without decoding them. Raises UserError if it is cut short or damaged,
    or if its frames are not evenly spaced."""
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
        # An intact AVI may have a frame or so less than its header counts; a cut file lacks more.
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
        # AVI stores no presentation times. FFmpeg derives them from the decoding order if it does not
        # see which frames are B frames: in H.264, and in MPEG-4 with two frames per packet (XviD).
        reordered = stream.codec_context.has_b_frames and is_avi
        made_up = reordered and shown == sorted(shown)
        if not complete:
            shown = [dts for _, dts in times if dts is not None]
    if len(shown) < len(times):
        return Timeline(len(times), 0, 0, timed=0)
    shown.sort()  # packets come in decoding order
    if not _are_even(shown):
        raise UserError(
            f"{printable_name(path)}: frames at uneven times (variable frame rate); convert it with "
            "ffmpeg -i FILE -vf fps=25 OUT"
        )
    return Timeline(len(shown), shown[0], shown[-1], int(complete and not made_up))


def _are_even(times: list[int]) -> bool:
    """Whether ascending times are evenly spaced, apart from rounding to the stream's unit."""
    count = len(times) - 1
    if not count:
        return True
    spacing = (times[-1] - times[0]) / count
    # Rounding moves a time by less than one unit (slightly more if rounded twice). If a unit is a whole
    # frame, a missing frame moves its neighbours by almost half of one, hence the quarter.
    tolerance = min(1.1, spacing / 4)
    return all(abs(time - times[0] - i * spacing) <= tolerance for i, time in enumerate(times))
