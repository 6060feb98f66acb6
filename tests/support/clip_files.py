"""Small videos that tests write, and folders of them (a pytest plugin)."""

import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from eltlab.config.schema import DataConfig
from eltlab.data.clips import open_video, timelines, video_decoding
from eltlab.data.clips.clip_files import load_clips
from eltlab.data.clips.video_decoding import Video
from eltlab.data.images.image_decoding import decode_image
from support.errors import fails
from support.image_files import encoded


def pan(count: int, seed: int = 0, width: int = 48, height: int = 32) -> list[np.ndarray]:
    """Frames uint8 [height, width, 3] of a camera that moves over blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    scene = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return [np.roll(scene, (-i, -2 * i), (0, 1))[:height, :width] for i in range(count)]


def write(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "mpeg4",
    rate: int | Fraction = 25,
    times: list[int] | None = None,
    pixels: str = "yuv420p",
    form: str = "rgb24",
    rotation: float = 0,
    options: dict[str, str] | None = None,
    **codec_options: str,
) -> Path:
    """Writes a video. times: when each frame is shown, counted in frames; None: at an even rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=codec_options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=form)
            frame.pts, frame.time_base = (times or range(len(frames)))[i], 1 / Fraction(rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def put(root: Path, *names: str, count: int = 8) -> Path:
    """Writes a different video with this many frames under each name; returns root."""
    for seed, name in enumerate(names):
        write(root / name, pan(count, seed))
    return root


@pytest.fixture(scope="session")
def written_clips(tmp_path_factory) -> Path:
    """Two classes with three training videos and a test video of nine frames each, and a longer video."""
    names = [f"train/{label}/{i}.avi" for label in "ab" for i in range(3)]
    root = put(tmp_path_factory.mktemp("made"), *names, "test/a/9.avi", "test/b/9.avi", count=9)
    write(root / "train/b/3.mp4", pan(17, 70), "libx264", g="4", bf="2")
    return root


@pytest.fixture
def clip_folder(written_clips, tmp_path) -> Path:
    """A copy of written_clips that a test may change."""
    return shutil.copytree(written_clips, tmp_path / "videos")


def clip_config(root: Path, **keys: object) -> DataConfig:
    data = DataConfig("clips", str(root), frames=4, size=16, channels=3, classes=2, workers=0)
    return replace(data, patch=4, codebook=16, **keys)


@pytest.fixture
def seen_frames(monkeypatch) -> Counter[str]:
    """Counts opened files and decoded frames."""
    count: Counter[str] = Counter()
    open_one, decode = open_video.open_video, Video._decode

    def count_open(path: Path):
        count["opened"] += 1
        return open_one(path)

    def count_decode(self: Video, *rest: object):
        for item in decode(self, *rest):
            count["frames"] += 1
            yield item

    for module in (timelines, video_decoding):
        monkeypatch.setattr(module, "open_video", count_open)
    monkeypatch.setattr(Video, "_decode", count_decode)
    return count


def as_image(pixels: np.ndarray, size: int, channels: int) -> np.ndarray:
    return decode_image(encoded(Image.fromarray(pixels)), size, channels, "x")


def refused(clip_folder: Path, content: bytes | None = None, name: str = "2.avi", **keys) -> str:
    """The error message if train/b/NAME with these bytes replaces train/b/2.avi."""
    path = clip_folder / "train/b" / name
    if content is not None:
        (clip_folder / "train/b/2.avi").unlink(missing_ok=True)
        path.write_bytes(content)
    message = fails(load_clips, clip_config(clip_folder, **keys))
    assert message.startswith(f"{path}: "), message
    return message
