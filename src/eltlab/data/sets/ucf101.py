"""Reads UCF-101's official lists of training and test videos. Does not import torch."""

from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets.listing import ListedSplit, Listing, natural_key

VIDEOS, LISTS = "UCF-101", "ucfTrainTestlist"  # the folders in its two archives


def find_lists(root: Path) -> Path | None:
    """The folder of the lists: in root, or next to it if root is the folder of the classes."""
    places = [root / LISTS, *([root.parent / LISTS] if root.name == VIDEOS else [])]
    return next((place for place in places if place.is_dir()), None)


def list_official_split(root: Path, lists: Path, split: int) -> Listing:
    """The videos of official split 1, 2 or 3. Raises UserError."""
    folder = f"{VIDEOS}/" if (root / VIDEOS).is_dir() else ""
    classes = _read_classes(lists / "classInd.txt")
    listed = []
    for kind in ("train", "test"):
        file = lists / f"{kind}list{split:02}.txt"
        videos = _read_videos(file, classes)
        for label, name in enumerate(classes):
            if label not in videos.values():
                raise UserError(f"{file}: no video of the class {name}; unpack the lists again")
        for video in videos:
            if not (root / folder / video).is_file():
                raise UserError(
                    f"data.root={root}: no {folder}{video}, which is in {file}; unpack UCF101.rar again, "
                    "or remove that line"
                )
        names = sorted(videos, key=lambda video: (videos[video], natural_key(video)))
        listed.append(ListedSplit([folder + name for name in names], [videos[n] for n in names]))
    return Listing(root, classes, *listed)


def _read_classes(file: Path) -> list[str]:
    """The classes in the order of their numbers. A line is `1 ApplyEyeMakeup`."""
    numbered = {}
    for line in _read_lines(file):
        number, _, name = line.partition(" ")
        if not number.isdigit() or not name or "/" in name:
            raise UserError(f"{file}: {line!r} is not NUMBER CLASS; unpack the lists again")
        numbered[int(number)] = name
    if sorted(numbered) != list(range(1, len(numbered) + 1)) or len(numbered) < 2:
        raise UserError(f"{file}: the classes are not numbered 1, 2, …; unpack the lists again")
    return [numbered[number] for number in sorted(numbered)]


def _read_videos(file: Path, classes: list[str]) -> dict[str, int]:
    """The label of each CLASS/VIDEO. A line is `CLASS/VIDEO`, in training lists with the class number."""
    videos = {}
    for line in _read_lines(file):
        video, _, number = line.partition(" ")
        name = video.partition("/")[0]
        label = classes.index(name) if name in classes else -1
        if label < 0 or number not in ("", str(label + 1)) or ".." in video.split("/"):
            raise UserError(
                f"{file}: {line!r} is not CLASS/VIDEO with a class of classInd.txt; unpack the lists again"
            )
        videos[video] = label
    return videos


def _read_lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: not readable ({error}); unpack UCF101TrainTestSplits-RecognitionTask.zip again"
        ) from error
