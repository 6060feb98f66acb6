"""Folders of videos are listed as classes and splits, and folders that are not are refused."""

import pytest
from support.errors import fails
from support.video_folders import touch

from eltlab.data.sets.video_listing import list_videos


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
    message = fails(list_videos, str(root), 2)
    assert f"data.split=2 applies to UCF-101 only, and data.root={root} has" in message
