"""Lists sets of images (class folders, a zip or Parquet files) without opening an image. Free of torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets import parquet
from eltlab.data.sets.class_folders import (
    arrange_classes,
    group_by_folder,
    is_visible,
    sort_visible,
    walk_folder,
)
from eltlab.data.sets.listing import Listing, name_some
from eltlab.data.sets.zip_names import read_zip_entries

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_listings: dict[Path, Listing] | None = None  # set inside `list_each_root_once`


@contextmanager
def list_each_root_once() -> Iterator[None]:
    """Inside this block a root is listed on the first request only: a verb may need its classes and then
    its images, and the tree may have a million files on a network disk."""
    global _listings
    _listings = {}
    try:
        yield
    finally:
        _listings = None


def list_images(root: str | None) -> Listing:
    """The images of data.root: ROOT/{train,test}/CLASS/IMAGE or ROOT/CLASS/IMAGE.

    ROOT is a folder, a zip of it (with or without the folder itself), or Parquet files as the Hugging
    Face hub has them. Raises UserError.
    """
    if root is None:
        raise UserError(
            "data.root is missing: data=images requires a folder or a zip of class folders"
        )
    path = Path(root).expanduser()
    if _listings is None:
        return _list(path)
    path = path.resolve()  # the rules of data resolve data.root between two requests
    if path not in _listings:
        _listings[path] = _list(path)
    return _listings[path]


def _list(path: Path) -> Listing:
    if parquet.is_parquet(path):
        _check_unmixed(path)
        return parquet.list_rows(path)
    if not path.exists():
        raise UserError(
            f"data.root={path}: does not exist; give a folder of class folders, or a zip of one"
        )
    if path.is_dir():
        names = sort_visible(walk_folder(path), SUFFIXES)
    else:
        names = sort_visible([entry.filename for entry in read_zip_entries(path)], SUFFIXES)
    if not names:
        raise UserError(
            f"data.root={path}: no images; give a folder of class folders of {' '.join(SUFFIXES)} files, "
            "or a zip of one"
        )
    # A zip may have the folder itself in front of all of its names.
    has_top = path.is_file() and len({name.split("/", 1)[0] for name in names}) == 1
    return arrange_classes(path, names, depth=int(has_top and bool(group_by_folder(names, 1))))


def _check_unmixed(root: Path) -> None:
    """Raises UserError if Parquet files are next to class folders: the set could be either."""
    classes = [
        folder.name
        for parent in (root, root / "train")
        for folder in sorted(parent.glob("*/"))
        if any(is_visible(file.name, SUFFIXES) for file in folder.iterdir())
    ]
    if len(classes) > 1:  # a single folder may have the pictures of the data set's page
        raise UserError(
            f"data.root={root}: has class folders of images ({name_some(classes)}) and "
            f"{parquet.files(root)[0].name}; move one of the two elsewhere"
        )
