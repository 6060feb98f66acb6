"""Class folders are listed as classes and splits, and folders that are not are refused."""

import pytest
from support.errors import fails
from support.image_files import put

from eltlab.data.sets.image_listing import SUFFIXES, list_images


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test", "VAL"])
def test_a_test_folder_is_the_test_split(tmp_path, name):
    put(tmp_path, "train/b/1.png", "train/a/1.png", f"{name}/b/2.png", "other/x/3.png")
    listing = list_images(str(tmp_path))
    assert listing.classes == ["a", "b"]
    assert listing.train.names == ["train/a/1.png", "train/b/1.png"]
    assert listing.train.labels == [0, 1]
    assert (listing.test.names, listing.test.labels) == ([f"{name}/b/2.png"], [1])


def test_test_comes_before_val(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png", "val/a/3.png")
    assert list_images(str(tmp_path)).test.names == ["test/a/2.png"]


def test_only_images_are_listed(tmp_path):
    put(tmp_path, *(f"train/{c}/{c}{s}" for c in "ab" for s in (*SUFFIXES, ".JPG")), "test/a/1.png")
    junk = "train/a/.x.png train/a/t.txt train/.c/1.png train/__MACOSX/1.png __MACOSX/train/d/1.png"
    put(tmp_path, *junk.split(), "train/loose.png", "train/empty/notes.md")
    listing = list_images(str(tmp_path))
    assert listing.classes == ["a", "b"]
    assert len(listing.train.names) == 2 * (len(SUFFIXES) + 1)


def test_links_are_followed_and_loops_end(tmp_path):
    root = put(tmp_path / "root", "a/1.png", "b/1.png", "b/2.png")
    put(tmp_path / "elsewhere", "3.png")
    (root / "a/more").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/self").symlink_to(root / "a")
    (root / "b/up").symlink_to(root)
    for one in range(12):  # each folder links to all of them: 12! paths without a loop
        for other in range(12):
            place = put(tmp_path / f"maze/{one}", "1.png")
            (place / f"to{other}").symlink_to(tmp_path / f"maze/{other}")
    (root / "b/maze").symlink_to(tmp_path / "maze/0")
    listing = list_images(str(root))
    assert listing.classes == ["a", "b", "c"]
    names = listing.train.names + listing.test.names
    assert [name for name in names if "maze" not in name] == [
        *("a/1.png", "a/more/3.png", "b/1.png", "b/2.png", "c/3.png")
    ]
    assert 12 <= len([name for name in names if "maze" in name]) <= 24


def test_folders_that_are_not_a_set_of_classes_are_refused(tmp_path):
    def refused(*names: str) -> str:
        number = len(list(tmp_path.iterdir()))
        root = put(tmp_path / f"r{number}", *names, size=1)
        root.mkdir(exist_ok=True)
        message = fails(list_images, str(root))
        assert f"data.root={root}: " in message
        return message

    assert ": no images; give" in refused()
    assert ": no images; give" in refused("a/notes.txt", "b/notes.txt")
    assert "directly in the folder; give each class its own folder, CLASS/" in refused("1.png", "2.png")
    assert "only one class, a; give at least two class folders" in refused("a/1.png", "a/b/2.png")
    assert "only one class, train/a; give" in refused("train/a/1.png", "test/a/2.png")
    assert "directly in train/" in refused("train/1.png", "test/a/2.png")
    assert "the images in val/ are not in class folders" in refused(
        "train/a/1.png", "train/b/1.png", "val/1.png"
    )
    message = refused("train/a/1.png", "train/b/1.png", "test/c/1.png", "test/a/1.png")
    assert message.endswith("test/c is a class that train/ does not have; train/ has a, b")
    assert "data.root is missing" in fails(list_images, None)
    assert f"{tmp_path}/nowhere: does not exist" in fails(list_images, f"{tmp_path}/nowhere")
