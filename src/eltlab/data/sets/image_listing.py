"""Lists image sets (folders, a zip, Parquet) without opening an image or importing torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets import parquet
from eltlab.data.sets.class_folders import arrange_classes, group_by_folder, sort_visible, walk_folder
from eltlab.data.sets.listing import Listing, name_some
from eltlab.data.sets.zip_names import read_zip_entries

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_listings: dict[Path, Listing] | None = None  # set inside `list_each_root_once`


@contextmanager
def list_each_root_once() -> Iterator[None]:
    """Inside this block, each root is listed only once: a verb may need its classes and then its images,
    and the tree may have a million files on a network disk."""
    global _listings
    _listings = {}
    try:
        yield
    finally:
        _listings = None


def list_images(root: str | None) -> Listing:
    """The images of data.root: ROOT/{train,test}/CLASS/IMAGE or ROOT/CLASS/IMAGE. ROOT is a folder, a
    zip of one (with or without the folder itself), or Parquet files in the layout of the Hugging Face hub.
    Raises UserError."""
    if root is None:
        raise UserError("data.root is missing: data=images requires class folders or a zip of them")
    path = Path(root).expanduser()
    if _listings is None:
        return _list(path)
    path = path.resolve()  # data.root is made absolute between two calls
    return _listings.get(path) or _listings.setdefault(path, _list(path))


def _list(path: Path) -> Listing:
    if parquet.parquet_files(path):
        _check_unmixed(path)
        return parquet.list_rows(path)
    files: list[str] = []
    if path.exists():
        files = walk_folder(path) if path.is_dir() else [e.filename for e in read_zip_entries(path)]
    names = sort_visible(files, SUFFIXES)
    if not names:
        raise UserError(
            f"data.root={path}: {'no images' if path.exists() else 'does not exist'}; give a folder of class "
            f"folders of {' '.join(SUFFIXES)} files, or a zip of one"
        )
    # All names in a zip may start with the folder itself.
    has_top = path.is_file() and len({name.split("/", 1)[0] for name in names}) == 1
    return arrange_classes(path, names, depth=int(has_top and bool(group_by_folder(names, 1))))


def _check_unmixed(root: Path) -> None:
    """Raises UserError if Parquet files are next to class folders: either could be the set."""
    classes = [
        folder.name
        for parent in (root, root / "train")
        for folder in sorted(parent.glob("*/"))
        if sort_visible([file.name for file in folder.iterdir()], SUFFIXES)
    ]
    if len(classes) > 1:  # a single folder may hold pictures for the data set's web page
        raise UserError(
            f"data.root={root}: has class folders of images ({name_some(classes)}) and "
            f"{parquet.parquet_files(root)[0].name}; move one of the two elsewhere"
        )
