"""Zips that are damaged, or whose names point outside, are refused."""

import zipfile

import pytest
from support.errors import fails
from support.image_files import zipped

from eltlab.data.sets.image_listing import list_images


def test_files_that_are_not_a_zip_are_refused(image_folder, tmp_path):
    text = tmp_path / "pictures.tar"
    text.write_text("no zip")
    assert f"data.root={text}: not a zip, or a damaged one" in fails(list_images, str(text))
    archive = zipped(image_folder, tmp_path / "whole.zip")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-200])
    assert f"data.root={cut}: not a zip, or a damaged one" in fails(list_images, str(cut))


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/etc/1.png", "a\\1.png", "C:/1.png"])
def test_a_zip_with_names_that_point_outside_is_refused(image_folder, tmp_path, name):
    archive = zipped(image_folder, tmp_path / "evil.zip")
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(name, b"")
    message = fails(list_images, str(archive))
    assert f"{archive}: the entry {name!r} points outside of the zip" in message


def test_the_whole_name_is_checked_and_not_only_up_to_a_null_byte(image_folder, tmp_path):
    """zipfile cuts a name at a null byte, but another program that reads the zip may not."""
    archive = zipped(image_folder, tmp_path / "evil.zip")
    entry = zipfile.ZipInfo("1.png")
    entry.filename = "1.png\0/../../2.png"
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(entry, b"")
    assert zipfile.ZipFile(archive).infolist()[-1].filename == "1.png"
    assert "points outside of the zip" in fails(list_images, str(archive))
