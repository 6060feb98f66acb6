"""Sets of videos: windows of a few frames, streamed or in memory, and their origin."""

import shutil

import numpy as np
import pytest
import torch
from support.clip_files import as_image, clip_config, pan, put, refused, write
from support.errors import fails
from support.real_videos import whole
from torch import nn

from eltlab.config.schema import MetricsConfig
from eltlab.data.clips.clip_files import ClipFiles, load_clips
from eltlab.data.clips.timelines import read_timeline
from eltlab.data.images.image_set import ImageSet
from eltlab.data.sets.listing import ListedSplit
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.reference import Reference


def test_windows_of_one_batch_open_a_video_once_and_decode_a_frame_once(tmp_path, seen_frames):
    for name, options in {"a/long.mp4": {"g": "250", "sc_threshold": "0"}, "b/x.mp4": {}}.items():
        write(tmp_path / name, pan(40), "libx264", **options)
    names = [f"{name}#{i}" for name in ("a/long.mp4", "b/x.mp4") for i in range(10)]
    timelines = {name: read_timeline(tmp_path / name) for name in ("a/long.mp4", "b/x.mp4")}
    files = ClipFiles("x", tmp_path, ListedSplit(names, [0] * 20), clip_config(tmp_path), timelines)
    seen_frames.clear()
    order = np.random.default_rng(0).permutation(20).tolist()
    [together] = files.read_batches([order])
    assert (seen_frames["opened"], seen_frames["frames"]) == (2, 80)
    alone = list(files.read_batches([[i] for i in order]))
    assert torch.equal(together, torch.cat(alone)) and seen_frames["opened"] == 22


def test_videos_are_cut_into_whole_windows(clip_folder):
    train, test = load_clips(clip_config(clip_folder))
    assert isinstance(train, ImageSet) and (train.name, test.name) == ("clips/train", "clips/test")
    assert train.images.shape == (6 + 6 + 4, 4, 3, 16, 16) and train.shape == (4, 3, 16, 16)
    assert train.labels.tolist() == [0] * 6 + [1] * 10 and test.labels.tolist() == [0, 0, 1, 1]
    streamed, _ = load_clips(clip_config(clip_folder, in_memory=False))
    assert streamed.names[:3] == ["train/a/0.avi#0", "train/a/0.avi#1", "train/a/1.avi#0"]
    frames = whole(clip_folder / "train/a/1.avi")
    for window in (0, 1):
        expected = [as_image(frame, 16, 3) for frame in frames[4 * window : 4 * window + 4]]
        assert np.array_equal(train.images[2 + window].numpy(), np.stack(expected))
    wide, _ = load_clips(clip_config(clip_folder, stride=2))
    assert len(wide) == 3 + 3 + 2
    expected = np.stack([as_image(frame, 16, 3) for frame in frames[:8:2]])
    assert np.array_equal(wide.images[1].numpy(), expected)


def test_the_windows_of_a_video_are_in_one_split(tmp_path):
    put(tmp_path, *(f"{label}/{i}.avi" for label in "ab" for i in range(11)), count=10)
    train, test = load_clips(clip_config(tmp_path, in_memory=False))
    assert [name for name in test.names if name.startswith("a")] == ["a/9.avi#0", "a/9.avi#1"]
    videos = [{name.split("#")[0] for name in split.names} for split in (train, test)]
    assert len(train) == 40 and not set.intersection(*videos)


def test_clips_in_memory_and_streamed_are_equal(clip_folder):
    (memory, _), (streamed, _) = (load_clips(clip_config(clip_folder, in_memory=k)) for k in (True, False))
    assert isinstance(streamed, ClipFiles) and len(streamed) == len(memory) == 16
    assert (streamed.shape, streamed.origin) == (memory.shape, memory.origin)
    assert torch.equal(streamed.labels, memory.labels)
    assert torch.equal(torch.cat(list(streamed.read_in_order(5))), memory.images)
    for count in (5, None):
        one, other = memory.subset(count), streamed.subset(count)
        assert isinstance(other, ImageSet) and one.hash == other.hash and one.name == other.name
    assert streamed.origin == load_clips(clip_config(clip_folder, in_memory=False))[0].origin
    extractor = Extractor("x", nn.Flatten(), torch.device("cpu"), 4)
    for count in (5, None):  # a protocol must not depend on the memory of a machine
        choice = MetricsConfig(reference=count)
        names = {Reference(split, split, choice, extractor, 5).name for split in (memory, streamed)}
        assert len(names) == 1


@pytest.mark.integration
def test_worker_processes_decode_the_same_clips(clip_folder):
    memory, _ = load_clips(clip_config(clip_folder))
    streamed, _ = load_clips(clip_config(clip_folder, in_memory=False, workers=2))
    batches = [[13, 2, 3, 13], [0, 15], [7]]
    for rows, read in zip(batches, streamed.read_batches(batches), strict=True):
        assert torch.equal(read, memory.images[rows])


def test_the_origin_follows_the_files_and_the_way_of_cutting(clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    origin = load_clips(clip_config(clip_folder))[0].origin
    assert load_clips(clip_config(copy, in_memory=False))[0].origin == origin
    changes = [{"stride": 2}, {"frames": 3}, {"size": 8}, {"channels": 1}]
    changes += [{"frames": 2, "stride": stride} for stride in (3, 4)]  # the same number of windows
    origins = {load_clips(clip_config(clip_folder, in_memory=False, **c))[0].origin for c in changes}
    write(clip_folder / "train/a/0.avi", pan(9, 55))
    origins.add(load_clips(clip_config(clip_folder, in_memory=False))[0].origin)
    assert len(origins | {origin}) == 8


def test_a_video_that_is_too_short_is_named_with_the_keys(clip_folder):
    content = write(clip_folder / "x.avi", pan(7)).read_bytes()
    message = refused(clip_folder, content, frames=4, stride=2)
    assert "2.avi: 7 frames, fewer than data.frames=4 times data.stride=2; reduce one of the two" in message


def test_too_few_clips_are_refused(clip_folder, tmp_path):
    few = put(tmp_path / "few", *(f"{label}/{i}.avi" for label in "ab" for i in range(3)))
    assert f"data.root={few}: no test clips, because every tenth video" in fails(load_clips, clip_config(few))
    for i in (1, 2):
        (clip_folder / f"train/a/{i}.avi").unlink()
    message = fails(load_clips, clip_config(clip_folder, frames=8))
    assert f"data.root={clip_folder}: class a has 1 training clips; each class requires at" in message
    message = fails(load_clips, clip_config(clip_folder, classes=3))
    assert message.startswith(f"data.classes=3: {clip_folder} has 2 classes; choose another data.root, or ")
    assert message.endswith("train with data.classes=2")
