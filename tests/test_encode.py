"""The verb encode, in this process."""

from pathlib import Path

from support.encoded_sets import asked

from eltlab import encode
from eltlab.data.sets import image_listing


def test_encode_lists_the_images_once(photo_folder, weights_folder, tmp_path, monkeypatch) -> None:
    listed: list[Path] = []
    real = image_listing.walk_folder
    monkeypatch.setattr(image_listing, "walk_folder", lambda root: (listed.append(root), real(root))[1])
    encode.main(asked(photo_folder, weights_folder, tmp_path / "set"))
    assert listed == [photo_folder]
    image_listing.list_images(str(photo_folder))
    assert len(listed) == 2  # after encode, the folder is listed again
