"""Decodes any frames of a video file, bit for bit equal to decoding from its start."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import av
from av.video.reformatter import Interpolation
from PIL import Image

from eltlab.data.clips.open_video import error_reason, open_video, unreadable
from eltlab.data.clips.timelines import Timeline

# A seek to the key frame before a frame may land too late, and is then tried this many frames earlier.
SEEK_BACK = (0, 16, 256)
# FFmpeg's default arithmetic depends on the processor's vector units; this one is exact.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


class Video:
    """An open video file. Reading frames in ascending order is cheapest."""

    def __init__(self, path: Path, timeline: Timeline) -> None:
        self.path, self.timeline = path, timeline
        self.container, self.stream = open_video(path)
        self.decoder: Iterator[tuple[int, av.VideoFrame]] | None = None
        self.next_frame = 0  # the number of the decoder's next frame
        self.seeks = bool(timeline.timed)

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exception: object) -> None:
        self.decoder = None
        self.container.close()

    def frames(self, wanted: range) -> list[av.VideoFrame]:
        """The frames with these numbers. Raises UserError."""
        ahead = wanted[0] - self.next_frame
        # If the frame is close, decoding up to it costs less than a seek.
        must_seek = self.seeks and ahead > wanted[-1] - wanted[0]
        try:
            if self.decoder is None or ahead < 0 or must_seek:
                self.decoder = self._start_decoder(wanted[0])
            return self._take(wanted)
        except _FramesLost as lost:
            if not self.seeks:
                raise unreadable(self.path, str(lost)) from lost
            # Some files cannot be decoded from their key frames, and some have wrong times. Decoding
            # from the start works for both, or shows that the file is damaged.
            self.seeks, self.decoder = False, None
            return self.frames(wanted)

    def _take(self, wanted: range) -> list[av.VideoFrame]:
        assert self.decoder is not None
        found = []
        try:
            for number, frame in self.decoder:
                self.next_frame = number + 1
                if number in wanted:
                    if frame.is_corrupt:
                        raise _FramesLost(f"frame {number} is damaged")
                    found.append(frame)
                if number >= wanted[-1]:
                    break
        except av.FFmpegError as error:
            raise _FramesLost(f"near frame {self.next_frame}: {error_reason(error)}") from error
        if len(found) < len(wanted):
            raise _FramesLost(f"frames {wanted[0]} to {wanted[-1]} cannot all be decoded")
        return found

    def _start_decoder(self, number: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes from a key frame at or before this frame; without seeks, from the start of the file."""
        for back in SEEK_BACK if self.seeks else ():
            time = self.timeline.time_of(max(number - back, 0))
            packets = self.container.demux(self.stream)
            try:
                self.container.seek(time, stream=self.stream, backward=True)
                first = next(packets)
            except av.FFmpegError:
                continue
            # A seek compares decoding times, so it may land on a key frame that is shown too late.
            if first.pts is not None and first.is_keyframe:
                key = self.timeline.frame_at(first.pts)
                if key <= number:
                    return self._decode(chain([first], packets), key)
        return self._decode_from_start()

    def _decode_from_start(self) -> Iterator[tuple[int, av.VideoFrame]]:
        # Open the file again: a seek to the start is not exact in every format.
        self.container.close()
        self.container, self.stream = open_video(self.path)
        self.next_frame = 0
        return self._decode(self.container.demux(self.stream), None)

    def _decode(self, packets: Iterator[av.Packet], key: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (number, frame), starting at the key frame with number key; None: at the file's start."""
        expected = key
        for packet in packets:
            if not packet.size and packet.dts is not None:
                continue  # a dropped frame of an AVI, which the decoder would take for the file's end
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                if not self.timeline.timed:
                    number = expected or 0
                elif frame.pts is None:
                    raise _FramesLost("a frame without a time")
                else:
                    number = self.timeline.frame_at(frame.pts)
                if expected is not None and number != expected:
                    raise _FramesLost(f"frame {expected} is missing")
                expected = number + 1
                yield number, frame


class _FramesLost(Exception):
    """The decoder did not return the expected frames."""


def frame_to_image(frame: av.VideoFrame) -> Image.Image:
    """Upright, as a player shows it, but with square pixels."""
    kind = "rgba" if any(part.is_alpha for part in frame.format.components) else "rgb24"
    pixels = frame.reformat(format=kind, interpolation=EXACT, threads=1).to_ndarray()
    image = Image.fromarray(pixels)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
