"""Timelines: which frames a video has and when they are shown, and videos that are cut short or uneven."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.clip_files import clip_config, pan, refused, write
from support.errors import fails
from support.real_videos import whole

from eltlab.data.clips import timelines
from eltlab.data.clips.clip_files import load_clips
from eltlab.data.clips.timelines import Timeline, read_timeline
from eltlab.data.clips.video_decoding import Video, frame_to_image


@pytest.fixture
def scanned(monkeypatch) -> list[str]:
    """The names of the videos whose timelines were read."""
    names: list[str] = []

    def read(path: Path) -> Timeline:
        names.append(path.name)
        return read_timeline(path)

    monkeypatch.setattr(timelines, "read_timeline", read)
    return names


def test_videos_are_read_and_decoded_once(clip_folder, seen_frames, scanned):
    first = load_clips(clip_config(clip_folder))
    assert len(scanned) == 9
    seen_frames.clear()
    again = load_clips(clip_config(clip_folder))
    assert len(scanned) == 9 and not seen_frames
    assert [s.hash for s in first] == [s.hash for s in again]
    load_clips(clip_config(clip_folder, stride=2, in_memory=False))
    assert len(scanned) == 9 and not seen_frames  # timelines are cached for every way of cutting
    write(clip_folder / "train/a/0.avi", pan(5, 3))
    assert len(load_clips(clip_config(clip_folder))[0]) == 15 and scanned[9:] == ["0.avi"]


def test_all_unusable_videos_are_named_at_once(clip_folder, scanned):
    for name in ("a/1.avi", "b/0.avi", "b/2.avi"):
        (clip_folder / "train" / name).write_bytes(b"no video")
    message = fails(load_clips, clip_config(clip_folder))
    assert message.startswith(f"{clip_folder}/train/a/1.avi: not a readable video (")
    assert message.endswith("; 2 more cannot be used: train/b/0.avi, train/b/2.avi")
    assert len(scanned) == 9
    for n, name in enumerate(("a/1.avi", "b/0.avi", "b/2.avi")):
        write(clip_folder / "train" / name, pan(3, n))
    message = fails(load_clips, clip_config(clip_folder))
    assert scanned[9:] == ["1.avi", "0.avi", "2.avi"]  # the other timelines are cached
    assert message.startswith(f"{clip_folder}/train/a/1.avi: 3 frames, fewer than data.frames=4 times")
    assert message.endswith("; 2 more cannot be used: train/b/0.avi, train/b/2.avi")


def test_many_unusable_videos_are_listed_with_reasons(clip_folder):
    names = sorted(path.name for path in (clip_folder / "train/a").iterdir())
    for name in names:
        write(clip_folder / "train/a" / name, pan(3))
    for n in range(8):
        (clip_folder / f"train/b/{n}0.avi").write_bytes(b"no video")
    message = fails(load_clips, clip_config(clip_folder))
    listed, path = message.rsplit(": ", 1)
    assert "; 7 more cannot be used: train/b/10.avi, " in listed
    assert listed.endswith("train/b/50.avi, …; all of them with the reasons")
    reasons = Path(path).read_text().splitlines()
    assert len(reasons) == 8 and all(": not a readable video (" in reason for reason in reasons)
    assert [f"{n}0.avi" in reason for n, reason in enumerate(reasons)] == [True] * 8


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
def test_a_video_that_is_cut_short_is_named(clip_folder, tmp_path, name, options):
    content = write(tmp_path / name, pan(60), **options).read_bytes()
    assert read_timeline(tmp_path / name).length == 60
    for share in (0.3, 0.6, 0.8):  # an AVI ends with its index, which FFmpeg can rebuild
        message = refused(clip_folder, content[: int(share * len(content))], name)
        assert message.endswith("repair or remove it")


def test_an_avi_that_is_cut_between_frames_is_named(clip_folder, tmp_path):
    path = write(tmp_path / "x.avi", pan(60))
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux() if packet.size]
    message = refused(clip_folder, path.read_bytes()[: places[30] - 8])
    assert "cut short: 30 of 60 frames" in message


@pytest.mark.parametrize("every", [2, 3])
def test_an_avi_with_evenly_dropped_frames_is_read(clip_folder, tmp_path, every):
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
    assert "cut short: " in refused(clip_folder, path.read_bytes()[: places[30] - 8])


def test_an_avi_with_unevenly_dropped_frames_is_refused(clip_folder, tmp_path):
    path = write(tmp_path / "x.avi", pan(60), "mpeg4", times=[n * 3 // 2 for n in range(60)])
    assert "frames at uneven times" in refused(clip_folder, path.read_bytes())


def test_uneven_times_are_refused(clip_folder, tmp_path):
    uneven = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    for name, codec in [("x.mp4", "libx264"), ("x.mkv", "libx264"), ("x.avi", "mpeg4")]:
        content = write(tmp_path / name, pan(10), codec, times=uneven).read_bytes()
        message = refused(clip_folder, content, name)
        (clip_folder / "train/b" / name).unlink()
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
