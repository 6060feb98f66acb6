"""The official lists of UCF-101 make the split."""

import shutil

import pytest
from support.errors import fails
from support.video_folders import VIDEOS, put_ucf101

from eltlab.data.sets.video_listing import list_videos


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
