"""Clips in folders of videos: windows of frames, decoded and resized like images."""

from functools import cached_property
from pathlib import Path

import av
import numpy as np

from eltlab.common.text import printable_name
from eltlab.config.schema import DataConfig
from eltlab.data.clips.timelines import Timelines, raise_unusable, read_timelines
from eltlab.data.clips.video_decoding import Video, frame_to_image
from eltlab.data.content_hashes import part_contents
from eltlab.data.images.image_decoding import TRANSFORM, resize_and_crop
from eltlab.data.images.image_files import ImageFiles, Images, load_or_stream
from eltlab.data.sets.listing import ListedSplit, Listing
from eltlab.data.sets.video_listing import list_videos

CUT = "windows laid end to end, 1"  # change the number whenever frames change


class ClipFiles(ImageFiles):
    """Labelled clips in a folder of videos, each read and decoded when it is requested.

    split: names are VIDEO#WINDOW: a path relative to root, and the number of a window in that video.
    data: a window has frames × stride frames; its clip is every stride-th of them.
    """

    # PyAV includes FFmpeg, which decodes and converts to RGB.
    versions = (*ImageFiles.versions, av.__version__)

    def __init__(
        self, name: str, root: Path, split: ListedSplit, data: DataConfig, timelines: Timelines
    ) -> None:
        super().__init__(name, root, split, data)
        self.timelines, self.stride = timelines, data.stride
        self.transform = f"{TRANSFORM}; {CUT}; stride {data.stride}"

    @cached_property
    def contents(self) -> list[str]:
        return part_contents(self.root, self.names, "#")

    def decode_into(self, images: np.ndarray, indices: list[int]) -> None:
        """Fills images, uint8 [B, F, C, H, W], with the clips at these indices. Raises UserError."""
        frames, channels, size, _ = self.shape
        windows: dict[str, list[tuple[int, int]]] = {}
        for row, index in enumerate(indices):
            video_name, window = _parse_name(self.names[index])
            windows.setdefault(video_name, []).append((window, row))
        # Open each video once and read its windows in ascending order, which is cheapest.
        for video_name, rows in windows.items():
            with Video(self.root / video_name, self.timelines[video_name]) as video:
                for window, row in sorted(rows):
                    first = window * frames * self.stride
                    wanted = range(first, first + frames * self.stride, self.stride)
                    for image, frame in zip(images[row], video.frames(wanted), strict=True):
                        image[:] = resize_and_crop(frame_to_image(frame), size, channels)


def _parse_name(name: str) -> tuple[str, int]:
    """a/b.avi#3 → a/b.avi, 3"""
    video, _, window = name.rpartition("#")
    return video, int(window)


def load_clips(data: DataConfig) -> tuple[Images, Images]:
    """(train, test) of data=clips. Raises UserError if a folder or video is unusable, or if data.root has
    too few clips, or not data.classes classes."""
    videos = list_videos(data.root, data.split)
    videos.check_class_count(data.classes)
    timelines = read_timelines(videos.root, videos.train.names + videos.test.names, data.workers)
    span = data.frames * data.stride
    too_short = {
        name: f"{printable_name(videos.root / name)}: {timeline.length} frames, fewer than data.frames="
        f"{data.frames} times data.stride={data.stride}; reduce one of the two, or remove the video"
        for name, timeline in timelines.items()
        if timeline.length < span
    }
    if too_short:
        raise_unusable(videos.root, too_short)
    splits = [_cut_windows(split, timelines, span) for split in (videos.train, videos.test)]
    Listing(videos.root, videos.classes, *splits).check_examples("clips", "every tenth video")
    train, test = (
        ClipFiles(f"clips/{name}", videos.root, split, data, timelines)
        for name, split in zip(("train", "test"), splits, strict=True)
    )
    return load_or_stream(train, test, data.in_memory)


def _cut_windows(videos: ListedSplit, timelines: Timelines, span: int) -> ListedSplit:
    """Cuts videos into adjacent windows. Frames after a video's last whole window are dropped."""
    clips = ListedSplit()
    for video, label in zip(videos.names, videos.labels, strict=True):
        for window in range(timelines[video].length // span):
            clips.append(f"{video}#{window}", label)
    return clips
