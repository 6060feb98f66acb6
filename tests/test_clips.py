"""Clips from folders of videos: listing, bit-exact frames, and files that are refused."""

import io
import os
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import fails, tiny
from PIL import Image
from real_videos import real_video, whole
from torch import nn

from eltlab.config.identity import identity
from eltlab.config.schema import DataConfig
from eltlab.data.clips import open_video, timelines, video_decoding
from eltlab.data.clips.clip_files import ClipFiles, load_clips
from eltlab.data.clips.timelines import Timeline, read_timeline
from eltlab.data.clips.video_decoding import Video, frame_to_image
from eltlab.data.image_sources import class_names, load_splits
from eltlab.data.images.image_decoding import decode_image
from eltlab.data.images.image_set import ImageSet
from eltlab.data.sets.listing import ListedSplit
from eltlab.data.sets.video_listing import list_videos
from eltlab.evaluation.features import Extractor, Reference

# --- videos for the tests -------------------------------------------------------------------------


def pan(count: int, seed: int = 0, width: int = 48, height: int = 32) -> list[np.ndarray]:
    """Frames uint8 [height, width, 3] of a camera that moves over blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    scene = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return [np.roll(scene, (-i, -2 * i), (0, 1))[:height, :width] for i in range(count)]


@cache
def photographs() -> list[Image.Image]:
    folder = os.environ.get("ELTLAB_DATA")
    if not folder or not (Path(folder) / "imagenette_128_jpeg.zip").is_file():
        pytest.skip("ELTLAB_DATA is not set: the folder with real images")
    with zipfile.ZipFile(Path(folder) / "imagenette_128_jpeg.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpeg")][::1200][:3]
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def moving_photographs(count: int) -> list[np.ndarray]:
    """Frames of a camera that moves over one photograph after another."""
    views = []
    for i in range(count):
        photo, x, y = photographs()[i * 3 // count], i % 30, (2 * i) % 50
        views.append(np.asarray(photo.crop((x, y, x + 64, y + 48))))
    return views


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
        for i, pixels_ in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_), format=form)
            frame.pts, frame.time_base = (times or range(len(frames)))[i], 1 / Fraction(rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_packed(path: Path, frames: list[np.ndarray]) -> Path:
    """MPEG-4 as XviD packs it: a B frame is in the packet of the later frame that it refers to, and a packet
    without a frame follows."""
    codec = av.CodecContext.create("mpeg4", "w")
    codec.height, codec.width = frames[0].shape[:2]
    codec.pix_fmt, codec.time_base, codec.framerate = "yuv420p", Fraction(1, 25), 25
    codec.max_b_frames, codec.gop_size = 1, 12
    packets = []
    for i, pixels in enumerate([*frames, None]):
        frame = None
        if pixels is not None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = i
        packets += [(bytes(p), p.is_keyframe) for p in codec.encode(frame)]
    start, packed = b"\0\0\1\xb6", []
    head, _, rest = packets[0][0].partition(start)
    packets[0] = (head + b"\0\0\1\xb2DivX503b1393p" + start + rest, True)
    for content, key in packets:
        if content[content.index(start) + 4] >> 6 == 2:  # a B frame
            packed[-1] = (packed[-1][0] + content, packed[-1][1])
            packed.append((start + b"\x50\0\x7f", False))
        else:
            packed.append((content, key))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.codec_tag = "yuv420p", "XVID"
        for i, (content, key) in enumerate(packed):
            packet = av.Packet(content)
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, key
            file.mux(packet)
    return path


def put(root: Path, *names: str, count: int = 8) -> Path:
    """Writes a different video with this many frames under each name; returns root."""
    for seed, name in enumerate(names):
        write(root / name, pan(count, seed))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two classes with three training videos and a test video of nine frames each, and a longer video."""
    names = [f"train/{label}/{i}.avi" for label in "ab" for i in range(3)]
    root = put(tmp_path_factory.mktemp("made"), *names, "test/a/9.avi", "test/b/9.avi", count=9)
    write(root / "train/b/3.mp4", pan(17, 70), "libx264", g="4", bf="2")
    return root


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "videos")


def clip_config(root: Path, **keys: object) -> DataConfig:
    data = DataConfig("clips", str(root), frames=4, size=16, channels=3, classes=2, workers=0)
    return replace(data, patch=4, codebook=16, **keys)


# --- listing --------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_a_test_folder_is_the_test_split(tmp_path):
    names = ["train/b/10.mp4", "train/b/9.AVI", "train/a/x/1.webm", "val/a/1.mkv", "val/b/1.mov"]
    root = touch(tmp_path, *names, "train/b/notes.txt", "train/a/1.gif", "train/a/.2.mp4")
    listing = list_videos(str(root))
    assert listing.classes == ["a", "b"]
    assert listing.train.names == ["train/a/x/1.webm", "train/b/9.AVI", "train/b/10.mp4"]
    assert listing.train.labels == [0, 1, 1]
    assert (listing.test.names, listing.test.labels) == (["val/a/1.mkv", "val/b/1.mov"], [0, 1])


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_every_tenth_video_of_a_class_is_held_out(tmp_path, prefix):
    names = [f"{prefix}{label}/{i}.avi" for label in "ab" for i in range(1, 21)]
    listing = list_videos(str(touch(tmp_path, *names)))
    assert listing.test.names == [f"{prefix}{label}/{i}.avi" for label in "ab" for i in (10, 20)]
    assert sorted(listing.train.names + listing.test.names) == sorted(names)


def test_folders_that_are_not_a_set_of_videos_are_refused(tmp_path):
    def refused(*names: str, empty: str = "") -> str:
        root = touch(tmp_path / f"r{len(list(tmp_path.iterdir()))}", *names)
        (root / empty).mkdir(parents=True, exist_ok=True)
        message = fails(list_videos, str(root))
        assert message.startswith(f"data.root={root}: ")
        return message

    assert ": no videos; give a folder of class folders of .avi .mp4" in refused("a/1.png")
    assert "the videos are directly in the folder" in refused("1.avi", "2.avi")
    assert "only one class, a; give at least two" in refused("a/1.avi")
    assert "only one class, train/a" in refused("train/a/1.avi", "test/a/1.avi")
    assert "c/ has no videos; add some" in refused("a/1.avi", "b/1.avi", empty="c")
    assert "c/ has no videos" in refused("a/1.avi", "b/1.avi", "c/1.txt")
    split = ("train/a/1.avi", "train/b/1.avi", "test/a/1.avi")
    assert ": test/b/ has no videos" in refused(*split)
    assert ": test/b/ has no videos" in refused(*split, empty="test/b")
    assert ": train/c/ has no videos" in refused(*split, "test/b/1.avi", empty="train/c")
    assert "test/c is a class that train/ does not have" in refused(*split, "test/b/1.avi", "test/c/1.avi")
    assert "data.root is missing: data=clips" in fails(list_videos, None)
    assert f"{tmp_path}/nowhere: does not exist" in fails(list_videos, f"{tmp_path}/nowhere")
    archive = touch(tmp_path, "videos.zip") / "videos.zip"
    assert f"{archive}: a file; give a folder" in fails(list_videos, str(archive))
    root = touch(tmp_path / "plain", "a/1.avi", "b/1.avi")
    assert f"data.split=2 applies to UCF-101 only, and data.root={root} has" in fails(
        list_videos, str(root), 2
    )


# --- UCF-101 --------------------------------------------------------------------------------------

VIDEOS = [f"{name}/v_{name}_g0{g}_c01.avi" for name in ("Bowling", "Archery") for g in range(1, 5)]


def put_ucf101(root: Path, inside: str = "UCF-101/") -> Path:
    """UCF-101's layout. Classes are not numbered in the order of their names; split n tests group n."""
    touch(root, *(inside + name for name in VIDEOS))
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 Bowling\r\n2 Archery\r\n")
    for n in (1, 2, 3):
        tests = [name for name in VIDEOS if f"_g0{n}_" in name]
        train = [f"{name} {1 + ('Archery' in name)}" for name in VIDEOS if name not in tests]
        (lists / f"testlist0{n}.txt").write_bytes("\r\n".join(tests).encode())
        (lists / f"trainlist0{n}.txt").write_bytes("\r\n".join([*train, ""]).encode())
    return root


@pytest.mark.parametrize("inside", ["UCF-101/", ""])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_official_lists_of_ucf101_make_the_split(tmp_path, inside, split):
    listing = list_videos(str(put_ucf101(tmp_path, inside)), split)
    assert listing.classes == ["Bowling", "Archery"]
    tests = [inside + name for name in VIDEOS if f"_g0{split}_" in name]
    assert (listing.test.names, listing.test.labels) == (tests, [0, 1])
    rest = [inside + name for name in VIDEOS if inside + name not in tests]
    assert (listing.train.names, listing.train.labels) == (rest, [0] * 3 + [1] * 3)
    assert all((listing.root / name).is_file() for name in rest)


def test_the_lists_may_be_next_to_the_folder_of_classes(tmp_path):
    listing = list_videos(str(put_ucf101(tmp_path) / "UCF-101"), 2)
    assert listing.test.names == [name for name in VIDEOS if "_g02_" in name]


def test_a_broken_ucf101_is_refused(tmp_path):
    root = put_ucf101(tmp_path / "x")
    lists = root / "ucfTrainTestlist"

    def refused(file: str, content: str) -> str:
        before = (lists / file).read_bytes()
        (lists / file).write_text(content)
        message = fails(list_videos, str(root), 1)
        (lists / file).write_bytes(before)
        return message

    assert "is not CLASS/VIDEO with a class" in refused("testlist01.txt", "Golf/v_Golf_g01_c01.avi")
    assert "is not CLASS/VIDEO with a class" in refused("trainlist01.txt", f"{VIDEOS[0]} 2")
    assert "no video of the class Archery" in refused("testlist01.txt", VIDEOS[0])
    assert "not numbered 1, 2" in refused("classInd.txt", "1 Bowling\n3 Archery")
    assert "is not NUMBER CLASS" in refused("classInd.txt", "Bowling\nArchery")
    (root / "UCF-101" / VIDEOS[2]).unlink()
    message = fails(list_videos, str(root), 1)
    assert f"no UCF-101/{VIDEOS[2]}, which is in {lists}/trainlist01.txt" in message
    (lists / "trainlist03.txt").unlink()
    assert f"{lists}/trainlist03.txt: not readable" in fails(list_videos, str(root), 3)
    shutil.rmtree(lists)
    for place in (root, root / "UCF-101"):
        assert f"data.root={place}: UCF-101 without ucfTrain" in fails(list_videos, str(place), 1)


# --- bit-exact frames -------------------------------------------------------------------------------

# How a file is written, and whether its frames are found by their times.
FORMATS = {
    "b.mp4": ({"codec": "libx264", "bf": "3", "g": "12"}, True),
    "long.mp4": ({"codec": "libx264", "bf": "2", "g": "250", "sc_threshold": "0"}, True),
    "open.mkv": (
        {"codec": "libx264", "bf": "3", "x264-params": "open-gop=1:scenecut=0:keyint=10"},
        True,
    ),
    "ntsc.mov": ({"codec": "libx264", "bf": "3", "rate": Fraction(30000, 1001)}, True),
    "ntsc.mkv": ({"codec": "libx264", "bf": "3", "rate": Fraction(30000, 1001), "g": "9"}, True),
    "b.avi": ({"bf": "2", "g": "12"}, True),
    "long.avi": ({"g": "300"}, True),
    "h264.avi": ({"codec": "libx264", "bf": "3", "g": "12"}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "g": "20", "cpu-used": "8"}, True),
    "mpeg2.mpg": ({"codec": "mpeg2video", "bf": "2", "g": "12"}, True),
    "packed.avi": (None, False),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_window_is_a_slice_of_the_whole_video(tmp_path, monkeypatch, name):
    options, timed = FORMATS[name]
    frames, path = moving_photographs(45), tmp_path / name
    if options is None:
        write_packed(path, frames)
    else:
        write(path, frames, **options)
    timeline, expected = read_timeline(path), whole(path)
    assert timeline.length == len(expected) == 45 and bool(timeline.timed) == timed
    assert np.abs(expected[30].astype(int) - frames[30]).mean() < 20  # frame 30 has the right content
    restarts = []
    from_start = Video._decode_from_start
    monkeypatch.setattr(Video, "_decode_from_start", lambda self: restarts.append(1) or from_start(self))
    windows = [range(a, a + 4) for a in range(0, 42, 5)] + [range(3, 40, 6), range(44, 45)]
    with Video(path, timeline) as video:
        for i in np.random.default_rng(0).permutation(2 * len(windows)) % len(windows):
            got = [np.asarray(frame_to_image(frame)) for frame in video.frames(windows[i])]
            assert len(got) == len(windows[i])
            for place, pixels in zip(windows[i], got, strict=True):
                assert np.array_equal(pixels, expected[place]), (windows[i], place)
    assert timed == (not restarts)
    with Video(path, timeline) as video:  # started in the middle
        [frame] = video.frames(range(29, 30))
        assert np.array_equal(np.asarray(frame_to_image(frame)), expected[29])


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4"])
def test_windows_of_a_real_video_are_slices_of_it(name):
    path = real_video(name)
    timeline, expected = read_timeline(path), whole(path)
    assert timeline.timed and timeline.length == len(expected) > 100
    with Video(path, timeline) as video:
        for first in (90, 3, 51, len(expected) - 9):
            window = range(first, first + 8, 2)
            for place, frame in zip(window, video.frames(window), strict=True):
                assert np.array_equal(np.asarray(frame_to_image(frame)), expected[place])


@pytest.fixture
def seen(monkeypatch) -> Counter[str]:
    """Counts opened files and decoded frames."""
    count: Counter[str] = Counter()
    opened, decoded = open_video.open_video, Video._decode

    def open_counted(path: Path):
        count["opened"] += 1
        return opened(path)

    def decode_counted(self: Video, *rest: object):
        for item in decoded(self, *rest):
            count["frames"] += 1
            yield item

    for module in (timelines, video_decoding):
        monkeypatch.setattr(module, "open_video", open_counted)
    monkeypatch.setattr(Video, "_decode", decode_counted)
    return count


def test_windows_of_one_batch_open_a_video_once_and_decode_a_frame_once(tmp_path, seen):
    for name, options in {"a/long.mp4": {"g": "250", "sc_threshold": "0"}, "b/x.mp4": {}}.items():
        write(tmp_path / name, pan(40), "libx264", **options)
    names = [f"{name}#{i}" for name in ("a/long.mp4", "b/x.mp4") for i in range(10)]
    timelines = {name: read_timeline(tmp_path / name) for name in ("a/long.mp4", "b/x.mp4")}
    files = ClipFiles("x", tmp_path, ListedSplit(names, [0] * 20), clip_config(tmp_path), timelines)
    seen.clear()
    order = np.random.default_rng(0).permutation(20).tolist()
    [together] = files.read_batches([order])
    assert (seen["opened"], seen["frames"]) == (2, 80)
    alone = list(files.read_batches([[i] for i in order]))
    assert torch.equal(together, torch.cat(alone)) and seen["opened"] == 22


def test_a_late_window_does_not_decode_frames_before_its_key_frame(tmp_path, seen):
    for name, codec in [("x.mp4", "libx264"), ("x.avi", "mpeg4")]:
        path = write(tmp_path / name, pan(60), codec, g="10")
        timeline = read_timeline(path)
        seen.clear()
        with Video(path, timeline) as video:
            video.frames(range(50, 54))
        assert seen["frames"] <= 14


def test_wrong_times_are_detected(tmp_path):
    """If the packets do not show it, decoding does."""
    path = write(tmp_path / "x.avi", pan(30), "libx264", bf="3", g="12")
    timeline = read_timeline(path)
    assert not timeline.timed
    with Video(path, timeline._replace(timed=1)) as video:
        assert "x.avi: not a readable video (frame " in fails(video.frames, range(20, 24))


# --- frames to pixels -----------------------------------------------------------------------------


def lossless(path: Path, frames: list[np.ndarray], form: str = "rgb24", **options) -> Path:
    return write(path, frames, "png", pixels=form, form=form, **options)


def one_clip(path: Path, size: int, channels: int, frames: int = 2, stride: int = 1) -> np.ndarray:
    split = ListedSplit([f"{path.name}#0"], [0])
    timelines = {path.name: read_timeline(path)}
    data = clip_config(path, frames=frames, stride=stride, size=size, channels=channels)
    files = ClipFiles("x", path.parent, split, data, timelines)
    [clip] = files.read_batches([[0]])
    assert clip.shape == (1, frames, channels, size, size) and clip.dtype == torch.uint8
    return clip[0].numpy()


def as_image(pixels: np.ndarray, size: int, channels: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return decode_image(buffer.getvalue(), size, channels, "x")


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_transformed_as_images_are(tmp_path, size, channels):
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(21, 35, 3), (37, 16, 3), (size, size, 3)]):
        frames = [rng.integers(0, 256, shape, np.uint8) for _ in range(7)]
        clip = one_clip(lossless(tmp_path / f"{number}.mov", frames), size, channels, stride=3)
        expected = [as_image(frames[place], size, channels) for place in (0, 3)]
        assert np.array_equal(clip, np.stack(expected))


def test_grey_and_transparent_frames_are_transformed_as_images_are(tmp_path):
    rng = np.random.default_rng(1)
    grey = [rng.integers(0, 256, (20, 30), np.uint8) for _ in range(2)]
    clear = [rng.integers(0, 256, (20, 30, 4), np.uint8) for _ in range(2)]
    for name, frames, form in [("grey.mov", grey, "gray"), ("clear.mov", clear, "rgba")]:
        path = lossless(tmp_path / name, frames, form)
        for channels in (1, 3):
            expected = np.stack([as_image(frame, 16, channels) for frame in frames])
            assert np.array_equal(one_clip(path, 16, channels), expected)


def test_a_rotated_video_is_upright(tmp_path):
    """As a player shows it: phones store the sensor's pixels and a rotation."""
    frames = [np.random.default_rng(2).integers(0, 256, (20, 20, 3), np.uint8)] * 2
    for turn in (90, 180, 270):
        path = lossless(tmp_path / f"{turn}.mov", frames, rotation=turn)
        upright = np.rot90(frames[0], turn // 90)  # counter-clockwise, as FFmpeg counts
        assert np.array_equal(one_clip(path, 20, 3)[0], upright.transpose(2, 0, 1))


def test_colours_are_decoded_correctly(tmp_path):
    colours = [(200, 40, 40), (40, 180, 60), (30, 60, 200), (255, 255, 255), (0, 0, 0)]
    for colour in colours:
        frame = np.full((32, 32, 3), colour, np.uint8)
        for name, options in [
            ("x.mp4", {"codec": "libx264", "crf": "1"}),
            ("full.avi", {"codec": "mjpeg", "pixels": "yuvj420p", "qmin": "1"}),
        ]:
            clip = one_clip(write(tmp_path / name, [frame] * 4, **options), 16, 3)
            assert np.abs(clip.mean(axis=(0, 2, 3)) - colour).max() < 6, (name, colour)


def test_the_declared_colour_range_is_used(tmp_path):
    colour = np.full((32, 32, 3), (40, 200, 90), np.uint8)
    full = av.video.reformatter.ColorRange.JPEG
    path = tmp_path / "x.webm"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx-vp9", rate=25, options={"cpu-used": "8", "crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.color_range = full
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(colour, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_color_range=full)
            frame.color_range = full
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert np.abs(one_clip(path, 16, 3).mean(axis=(0, 2, 3)) - colour[0, 0]).max() < 4


def test_odd_sizes(tmp_path):
    frames = pan(4, width=37, height=23)
    path = write(tmp_path / "odd.avi", frames)
    assert np.abs(one_clip(path, 16, 3)[0].astype(int) - as_image(frames[0], 16, 3)).mean() < 20


# --- sets -----------------------------------------------------------------------------------------


def test_videos_are_cut_into_whole_windows(folder):
    train, test = load_clips(clip_config(folder))
    assert isinstance(train, ImageSet) and (train.name, test.name) == ("clips/train", "clips/test")
    assert train.images.shape == (6 + 6 + 4, 4, 3, 16, 16) and train.shape == (4, 3, 16, 16)
    assert train.labels.tolist() == [0] * 6 + [1] * 10 and test.labels.tolist() == [0, 0, 1, 1]
    streamed, _ = load_clips(clip_config(folder, in_memory=False))
    assert streamed.names[:3] == ["train/a/0.avi#0", "train/a/0.avi#1", "train/a/1.avi#0"]
    frames = whole(folder / "train/a/1.avi")
    for window in (0, 1):
        expected = [as_image(frame, 16, 3) for frame in frames[4 * window : 4 * window + 4]]
        assert np.array_equal(train.images[2 + window].numpy(), np.stack(expected))
    wide, _ = load_clips(clip_config(folder, stride=2))
    assert len(wide) == 3 + 3 + 2
    expected = np.stack([as_image(frame, 16, 3) for frame in frames[:8:2]])
    assert np.array_equal(wide.images[1].numpy(), expected)


def test_the_windows_of_a_video_are_in_one_split(tmp_path):
    put(tmp_path, *(f"{label}/{i}.avi" for label in "ab" for i in range(11)), count=10)
    train, test = load_clips(clip_config(tmp_path, in_memory=False))
    assert [name for name in test.names if name.startswith("a")] == ["a/9.avi#0", "a/9.avi#1"]
    assert len(train) == 40 and not {n.split("#")[0] for n in train.names} & {
        n.split("#")[0] for n in test.names
    }


def test_clips_in_memory_and_streamed_are_equal(folder):
    (memory, _), (streamed, _) = (load_clips(clip_config(folder, in_memory=k)) for k in (True, False))
    assert isinstance(streamed, ClipFiles) and len(streamed) == len(memory) == 16
    assert (streamed.shape, streamed.origin) == (memory.shape, memory.origin)
    assert torch.equal(streamed.labels, memory.labels)
    assert torch.equal(torch.cat(list(streamed.read_in_order(5))), memory.images)
    many = load_clips(clip_config(folder, in_memory=False, workers=2))[0]
    [some] = many.read_batches([[13, 2, 3, 13]])
    assert torch.equal(some, memory.images[[13, 2, 3, 13]])
    for count in (5, None):
        one, other = memory.subset(count), streamed.subset(count)
        assert isinstance(other, ImageSet) and one.hash == other.hash and one.name == other.name
    assert streamed.origin == load_clips(clip_config(folder, in_memory=False))[0].origin
    extractor = Extractor("x", nn.Flatten(), torch.device("cpu"), 4)
    for count in (5, None):  # a protocol must not depend on the memory of a machine
        names = {
            Reference(s if count is None else s.subset(count), extractor).name for s in (memory, streamed)
        }
        assert len(names) == 1


def test_the_origin_follows_the_files_and_the_way_of_cutting(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    origin = load_clips(clip_config(folder))[0].origin
    assert load_clips(clip_config(copy, in_memory=False))[0].origin == origin
    changes = [{"stride": 2}, {"frames": 3}, {"size": 8}, {"channels": 1}]
    changes += [
        {"frames": 2, "stride": 3},
        {"frames": 2, "stride": 4},
    ]  # the same number of windows
    origins = {load_clips(clip_config(folder, in_memory=False, **c))[0].origin for c in changes}
    write(folder / "train/a/0.avi", pan(9, 55))
    origins.add(load_clips(clip_config(folder, in_memory=False))[0].origin)
    assert len(origins | {origin}) == 8


@pytest.fixture
def scanned(monkeypatch) -> list[str]:
    """The names of the videos whose timelines were read."""
    names: list[str] = []

    def read(path: Path) -> Timeline:
        names.append(path.name)
        return read_timeline(path)

    monkeypatch.setattr(timelines, "read_timeline", read)
    return names


def test_videos_are_read_and_decoded_once(folder, seen, scanned):
    first = load_clips(clip_config(folder))
    assert len(scanned) == 9
    seen.clear()
    again = load_clips(clip_config(folder))
    assert len(scanned) == 9 and not seen
    assert [s.hash for s in first] == [s.hash for s in again]
    load_clips(clip_config(folder, stride=2, in_memory=False))
    assert len(scanned) == 9 and not seen  # timelines are cached for every way of cutting
    write(folder / "train/a/0.avi", pan(5, 3))
    assert len(load_clips(clip_config(folder))[0]) == 15 and scanned[9:] == ["0.avi"]


def test_all_unusable_videos_are_named_at_once(folder, scanned):
    for name in ("a/1.avi", "b/0.avi", "b/2.avi"):
        (folder / "train" / name).write_bytes(b"no video")
    message = fails(load_clips, clip_config(folder))
    assert message.startswith(f"{folder}/train/a/1.avi: not a readable video (")
    assert message.endswith("; 2 more cannot be used: train/b/0.avi, train/b/2.avi")
    assert len(scanned) == 9
    for n, name in enumerate(("a/1.avi", "b/0.avi", "b/2.avi")):
        write(folder / "train" / name, pan(3, n))
    message = fails(load_clips, clip_config(folder))
    assert scanned[9:] == ["1.avi", "0.avi", "2.avi"]  # the other timelines are cached
    assert message.startswith(f"{folder}/train/a/1.avi: 3 frames, fewer than data.frames=4 times")
    assert message.endswith("; 2 more cannot be used: train/b/0.avi, train/b/2.avi")


def test_many_unusable_videos_are_listed_with_reasons(folder):
    names = sorted(path.name for path in (folder / "train/a").iterdir())
    for name in names:
        write(folder / "train/a" / name, pan(3))
    for n in range(8):
        (folder / f"train/b/{n}0.avi").write_bytes(b"no video")
    message = fails(load_clips, clip_config(folder))
    listed, path = message.rsplit(": ", 1)
    assert "; 7 more cannot be used: train/b/10.avi, " in listed
    assert listed.endswith("train/b/50.avi, …; all of them with the reasons")
    reasons = Path(path).read_text().splitlines()
    assert len(reasons) == 8 and all(": not a readable video (" in reason for reason in reasons)
    assert [f"{n}0.avi" in reason for n, reason in enumerate(reasons)] == [True] * 8


# --- what is refused ------------------------------------------------------------------------------


def refused(folder: Path, content: bytes | None = None, name: str = "2.avi", **keys) -> str:
    """The error message if train/b/NAME with these bytes replaces train/b/2.avi."""
    path = folder / "train/b" / name
    if content is not None:
        (folder / "train/b/2.avi").unlink(missing_ok=True)
        path.write_bytes(content)
    message = fails(load_clips, clip_config(folder, **keys))
    assert message.startswith(f"{path}: "), message
    return message


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_not_videos_are_named(folder, workers):
    for content in (b"", b"no video", np.random.default_rng(0).bytes(5000)):
        message = refused(folder, content, workers=workers)
        assert "not a readable video (" in message and "repair or remove it" in message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.avi", {}),
        ("x.mp4", {"codec": "libx264"}),
        ("fast.mp4", {"codec": "libx264", "options": {"movflags": "faststart"}}),
        ("x.mkv", {"codec": "libx264"}),
        ("x.webm", {"codec": "libvpx-vp9", "cpu-used": "8"}),
    ],
)
def test_a_video_that_is_cut_short_is_named(folder, tmp_path, name, options):
    content = write(tmp_path / name, pan(60), **options).read_bytes()
    assert read_timeline(tmp_path / name).length == 60
    for share in (0.3, 0.6, 0.8):  # an AVI ends with its index, which FFmpeg can rebuild
        message = refused(folder, content[: int(share * len(content))], name)
        assert message.endswith("repair or remove it")


def test_an_avi_that_is_cut_between_frames_is_named(folder, tmp_path):
    path = write(tmp_path / "x.avi", pan(60))
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux() if packet.size]
    message = refused(folder, path.read_bytes()[: places[30] - 8])
    assert "cut short: 30 of 60 frames" in message


@pytest.mark.parametrize("every", [2, 3])
def test_an_avi_with_evenly_dropped_frames_is_read(folder, tmp_path, every):
    """Its header counts the dropped frames."""
    path = write(tmp_path / "x.avi", pan(60), "mpeg4", times=range(0, 60 * every, every))
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames > 100
        places = [packet.pos for packet in file.demux() if packet.size]
    timeline = read_timeline(path)
    assert timeline.length == 60
    with Video(path, timeline) as video:
        late = [np.asarray(frame_to_image(frame)) for frame in video.frames(range(40, 44))]
    shown = whole(path)
    assert len(shown) == 60
    assert all(np.array_equal(one, other) for one, other in zip(late, shown[40:44], strict=True))
    assert "cut short: " in refused(folder, path.read_bytes()[: places[30] - 8])


def test_an_avi_with_unevenly_dropped_frames_is_refused(folder, tmp_path):
    path = write(tmp_path / "x.avi", pan(60), "mpeg4", times=[n * 3 // 2 for n in range(60)])
    assert "frames at uneven times" in refused(folder, path.read_bytes())


def test_a_video_with_a_damaged_frame_is_named(folder):
    path = folder / "train/b/3.mp4"
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        [third] = [(p.pos, p.size) for p in file.demux() if p.size and p.is_keyframe][2:3]
    content[third[0] + 4 : third[0] + third[1]] = bytes(third[1] - 4)
    path.write_bytes(content)
    train, _ = load_clips(clip_config(folder, in_memory=False))
    index = train.names.index("train/b/3.mp4#0")
    assert len(list(train.read_batches([[index]]))) == 1  # frames before it can be decoded
    message = fails(list, train.read_batches([[index + 2]]))
    assert message.startswith(f"{path}: not a readable video (")


def test_a_file_with_only_sound_is_refused(folder, tmp_path):
    path = tmp_path / "sound.avi"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
    assert "has no video that can be decoded" in refused(folder, path.read_bytes())


def test_a_video_that_is_too_short_is_named_with_the_keys(folder):
    content = write(folder / "x.avi", pan(7)).read_bytes()
    message = refused(folder, content, frames=4, stride=2)
    assert "2.avi: 7 frames, fewer than data.frames=4 times data.stride=2; reduce one of the two" in message


def test_uneven_times_are_refused(folder, tmp_path):
    uneven = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    for name, codec in [("x.mp4", "libx264"), ("x.mkv", "libx264"), ("x.avi", "mpeg4")]:
        content = write(tmp_path / name, pan(10), codec, times=uneven).read_bytes()
        message = refused(folder, content, name)
        (folder / "train/b" / name).unlink()
        assert "frames at uneven times" in message
        assert "ffmpeg -i FILE -vf fps=25 OUT" in message


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, 30, 60, 120, 240])
def test_rounded_times_are_even(tmp_path, rate):
    """Matroska counts milliseconds."""
    path = write(tmp_path / "x.mkv", pan(70), "libx264", rate=rate, g="10")
    timeline = read_timeline(path)
    assert timeline.length == 70 and timeline.timed
    assert [timeline.frame_at(timeline.time_of(place)) for place in range(70)] == list(range(70))
    expected = whole(path)
    with Video(path, timeline) as video:
        for place in (69, 0, 33, 51):
            [frame] = video.frames(range(place, place + 1))
            assert np.array_equal(np.asarray(frame_to_image(frame)), expected[place])


def test_one_frame_is_a_video(tmp_path):
    timeline = read_timeline(write(tmp_path / "x.mp4", pan(1), "libx264"))
    assert timeline == Timeline(1, timeline.first, timeline.first, 1) and timeline.frame_at(9) == 0


def test_too_few_clips_are_refused(folder, tmp_path):
    few = put(tmp_path / "few", *(f"{label}/{i}.avi" for label in "ab" for i in range(3)))
    assert f"data.root={few}: no test clips, because every tenth video" in fails(load_clips, clip_config(few))
    for i in (1, 2):
        (folder / f"train/a/{i}.avi").unlink()
    message = fails(load_clips, clip_config(folder, frames=8))
    assert f"data.root={folder}: class a has 1 training clips; each class requires at least two" in message
    message = fails(load_clips, clip_config(folder, classes=3))
    assert (
        message
        == f"data.classes=3: {folder} has 2 classes; choose another data.root, or train with data.classes=2"
    )


# --- the configuration ----------------------------------------------------------------------------


def test_clips_are_composed_and_loaded(folder):
    config = tiny("data=clips", f"data.root={folder}", "data.frames=4", "objective=masked")
    assert (config.data.classes, config.data.stride, config.data.split) == (2, 1, 1)
    assert class_names(config.data) == ["a", "b"]
    assert load_splits(config.data)[0].shape == (4, 3, 64, 64)
    ids = {identity(replace(config, data=replace(config.data, stride=s))) for s in (1, 2)}
    ids.add(identity(replace(config, data=replace(config.data, split=2))))
    ids.add(identity(replace(config, data=replace(config.data, root="/elsewhere"))))
    assert len(ids) == 4
    root = put_ucf101(folder / "ucf")
    config = tiny("data=clips", f"data.root={root}", "data.split=3", "objective=masked")
    assert class_names(config.data) == ["Bowling", "Archery"]


def test_keys_of_clips_are_checked(folder):
    clips = ["data=clips", f"data.root={folder}"]
    assert "data.stride=0: must be at least 1" in fails(tiny, *clips, "data.stride=0")
    assert "data.split=4: choose one of 1, 2, 3" in fails(tiny, *clips, "data.split=4")
    assert "data.frames=1: data=clips holds clips" in fails(tiny, *clips, "data.frames=1")
    assert "data.root is missing: data=clips" in fails(tiny, "data=clips")
    assert "data.stride=2 applies to data=clips only" in fails(tiny, "data.stride=2")
    assert "data.split=3 applies to data=clips only" in fails(tiny, "data.split=3")
    assert "data.frames=4: data=digits holds images" in fails(tiny, "data.frames=4")
