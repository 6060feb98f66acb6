"""Lists video sets (class folders or UCF-101) without opening a video or importing torch."""

from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets import ucf101
from eltlab.data.sets.class_folders import HIDDEN, arrange_classes, sort_visible, walk_folder
from eltlab.data.sets.listing import TEST_FOLDERS, Listing, natural_key

# Not .gif: its frames are rarely evenly spaced, and decoding cannot start in the middle.
SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg")


def list_videos(root: str | None, split: int = 1) -> Listing:
    """The videos of data.root: ROOT/{train,test}/CLASS/VIDEO or ROOT/CLASS/VIDEO, split as images are; or
    UCF-101, split by its official lists 1, 2 or 3. Raises UserError."""
    if root is None:
        raise UserError("data.root is missing: data=clips requires a folder of class folders")
    path = Path(root).expanduser()
    if not path.is_dir():
        found = "a file" if path.exists() else "does not exist"
        raise UserError(f"data.root={path}: {found}; give a folder of class folders of videos, unpacked")
    lists = ucf101.find_lists(path)
    if lists is not None:
        return ucf101.list_official_split(path, lists, split)
    if ucf101.VIDEOS in (path.name, *_subfolders(path)):
        raise UserError(
            f"data.root={path}: {ucf101.VIDEOS} without {ucf101.LISTS}/, its official splits; unpack "
            "UCF101TrainTestSplits-RecognitionTask.zip next to it"
        )
    if split != 1:
        raise UserError(
            f"data.split={split} applies to {ucf101.VIDEOS} only, and data.root={path} has no "
            f"{ucf101.LISTS}/. Remove it."
        )
    names = sort_visible(walk_folder(path), SUFFIXES)
    if not names:
        raise UserError(
            f"data.root={path}: no videos; give a folder of class folders of {' '.join(SUFFIXES)} files"
        )
    _check_no_class_is_empty(path, names)
    return arrange_classes(path, names, "videos")


def _check_no_class_is_empty(root: Path, names: list[str]) -> None:
    """Raises UserError for a class without videos: it would have a label and no clips."""
    folders = {name.lower(): f"{name}/" for name in _subfolders(root)}
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    splits = [folders["train"], *([test] if test else [])] if "train" in folders else [""]
    # The test split must have every class of the training split.
    classes = _subfolders(root / splits[0])
    for split in splits:
        for name in sorted({*classes, *_subfolders(root / split)}, key=natural_key):
            folder = f"{split}{name}/"
            if not any(video.startswith(folder) for video in names):
                raise UserError(f"data.root={root}: {folder} has no videos; add some, or remove it")


def _subfolders(folder: Path) -> list[str]:
    return [e.name for e in sorted(folder.iterdir()) if e.is_dir() and not HIDDEN.match(e.name)]
