"""Frames of a video: any window equals a slice of the whole, in every format, with an image's pixels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.clip_files import as_image, clip_config, pan, write
from support.errors import fails
from support.real_videos import real_video, whole
from support.shared_data import photographs

from eltlab.data.clips.clip_files import ClipFiles, load_clips
from eltlab.data.clips.timelines import read_timeline
from eltlab.data.clips.video_decoding import Video, frame_to_image
from eltlab.data.sets.listing import ListedSplit


@pytest.fixture(scope="module")
def moving_photographs(tmp_path_factory) -> list[np.ndarray]:
    """45 frames of a camera that moves over one photograph after another."""
    root = photographs(tmp_path_factory.mktemp("photographs"), classes=3, train=1, test=0)
    scenes = [Image.open(path).convert("RGB") for path in sorted(root.rglob("*.jpeg"))]
    views = []
    for i in range(45):
        x, y = i % 30, (2 * i) % 50
        views.append(np.asarray(scenes[i // 15].crop((x, y, x + 64, y + 48))))
    return views


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


# How a file is written, and whether its frames are found by their times.
FORMATS = {
    "b.mp4": ({"codec": "libx264", "bf": "3", "g": "12"}, True),
    "long.mp4": ({"codec": "libx264", "bf": "2", "g": "250", "sc_threshold": "0"}, True),
    "open.mkv": ({"codec": "libx264", "bf": "3", "x264-params": "open-gop=1:scenecut=0:keyint=10"}, True),
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
def test_a_window_is_a_slice_of_the_whole_video(tmp_path, monkeypatch, moving_photographs, name):
    options, timed = FORMATS[name]
    frames, path = moving_photographs, tmp_path / name
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


@pytest.mark.integration
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


def test_a_late_window_does_not_decode_frames_before_its_key_frame(tmp_path, seen_frames):
    for name, codec in [("x.mp4", "libx264"), ("x.avi", "mpeg4")]:
        path = write(tmp_path / name, pan(60), codec, g="10")
        timeline = read_timeline(path)
        seen_frames.clear()
        with Video(path, timeline) as video:
            video.frames(range(50, 54))
        assert seen_frames["frames"] <= 14


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


def test_a_video_with_a_damaged_frame_is_named(clip_folder):
    path = clip_folder / "train/b/3.mp4"
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        [third] = [(p.pos, p.size) for p in file.demux() if p.size and p.is_keyframe][2:3]
    content[third[0] + 4 : third[0] + third[1]] = bytes(third[1] - 4)
    path.write_bytes(content)
    train, _ = load_clips(clip_config(clip_folder, in_memory=False))
    index = train.names.index("train/b/3.mp4#0")
    assert len(list(train.read_batches([[index]]))) == 1  # frames before it can be decoded
    message = fails(list, train.read_batches([[index + 2]]))
    assert message.startswith(f"{path}: not a readable video (")
