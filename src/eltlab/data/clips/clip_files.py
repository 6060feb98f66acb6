"""Labelled clips from folders of videos: windows of frames, decoded as images are."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np

from eltlab.common.text import printable_name
from eltlab.config.schema import DataConfig
from eltlab.data.clips.timelines import refuse, timelines_of
from eltlab.data.clips.video_decoding import Timeline, Video, picture
from eltlab.data.images.decode import TRANSFORM, fitted
from eltlab.data.images.image_files import (
    Decoder,
    ImageFiles,
    Images,
    check_classes,
    check_examples,
    held,
)
from eltlab.data.sets.folders import Listing, Split, stamps
from eltlab.data.sets.videofolders import list_videos

CUT = "windows laid end to end, 1"  # another number where other frames come out


class ClipFiles(ImageFiles):
    """Labelled clips in a folder of videos, each read and decoded when it is asked for.

    Args:
        root: the folder; names are VIDEO#WINDOW, a path below it and which of the video's windows.
        timelines: of each video.
        frames, stride: of a clip; a window is frames * stride frames long.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        split: Split,
        timelines: dict[str, Timeline],
        frames: int,
        stride: int,
        size: int,
        channels: int,
        workers: int,
    ) -> None:
        super().__init__(name, root, split, size, channels, workers)
        self.timelines, self.stride = timelines, stride
        self.shape = (frames, *self.shape)
        self.transform = f"{TRANSFORM}; {CUT}; stride {stride}"
        # FFmpeg's decoders and its conversion to RGB come with PyAV.
        self.versions = (*self.versions, av.__version__)

    @cached_property
    def stamps(self) -> list[tuple[int, int]]:
        videos = [window_of(name)[0] for name in self.names]
        known = dict.fromkeys(videos)
        marks = dict(zip(known, stamps(self.root, list(known)), strict=True))
        return [marks[video] for video in videos]

    def decoder(self) -> Decoder:
        return _ClipDecoder(self.shape, self.root, self.names, self.timelines, self.stride)


def window_of(name: str) -> tuple[str, int]:
    """a/b.avi#3 → a/b.avi, 3"""
    video, _, window = name.rpartition("#")
    return video, int(window)


@dataclass
class _ClipDecoder(Decoder):
    root: Path
    names: list[str]
    timelines: dict[str, Timeline]
    stride: int

    def fill(self, images: np.ndarray, indices: list[int]) -> None:
        frames, channels, size, _ = self.shape
        windows: dict[str, list[tuple[int, int]]] = {}
        for row, index in enumerate(indices):
            name, window = window_of(self.names[index])
            windows.setdefault(name, []).append((window, row))
        # A video is opened once, and its windows are taken in the order in which they are decoded.
        for name, rows in windows.items():
            with Video(self.root / name, self.timelines[name]) as video:
                for window, row in sorted(rows):
                    first = window * frames * self.stride
                    wanted = range(first, first + frames * self.stride, self.stride)
                    for image, frame in zip(images[row], video.frames(wanted), strict=True):
                        image[:] = fitted(picture(frame), size, channels)


def load_clips(data: DataConfig) -> tuple[Images, Images]:
    """(train, test) of data=clips. Raises UserError for folders or videos that are not what they should
    be, and where data.root has not data.classes classes or too few clips."""
    videos = list_videos(data.root, data.split)
    check_classes(videos, data.classes)
    splits = {"train": videos.train, "test": videos.test}
    timelines = timelines_of(videos.root, videos.train.names + videos.test.names, data.workers)
    span = data.frames * data.stride
    short = {
        name: f"{printable_name(videos.root / name)}: {timeline.length} frames, fewer than data.frames="
        f"{data.frames} times data.stride={data.stride}; give less of the two, or take it away"
        for name, timeline in timelines.items()
        if timeline.length < span
    }
    if short:
        refuse(videos.root, short)
    cut = {name: _windows(split, timelines, span) for name, split in splits.items()}
    clips = Listing(videos.root, videos.classes, cut["train"], cut["test"])
    check_examples(clips, "clips", "every tenth video")
    train, test = (
        ClipFiles(
            f"clips/{name}",
            videos.root,
            split,
            {video: timelines[video] for video in splits[name].names},
            data.frames,
            data.stride,
            data.size,
            data.channels,
            data.workers,
        )
        for name, split in cut.items()
    )
    return held(train, test, data.in_memory)


def _windows(split: Split, timelines: dict[str, Timeline], span: int) -> Split:
    """The windows of the videos of a split; what is left over at the end of one is dropped."""
    names, labels = [], []
    for name, label in zip(split.names, split.labels, strict=True):
        count = timelines[name].length // span
        names += [f"{name}#{window}" for window in range(count)]
        labels += [label] * count
    return Split(names, labels)
