"""Sets of videos: class folders, or UCF-101 with its official splits; what is in them, without opening
a video. Free of torch."""

from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets.folders import TESTS, Listing, Split, arranged, files_below, natural

# Not .gif: its frames rarely lie at even times, and it cannot be entered in its middle.
SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg")
UCF101, LISTS = "UCF-101", "ucfTrainTestlist"  # the folders that its archives unpack to


def video_classes(root: str | None, split: int) -> list[str]:
    """The classes of data.root, in the order of their labels. Raises UserError."""
    return list_videos(root, split).classes


def list_videos(root: str | None, split: int = 1) -> Listing:
    """What data.root holds: ROOT/{train,test}/CLASS/VIDEO or ROOT/CLASS/VIDEO, by the rules of images;
    or UCF-101 (or its classes) beside ucfTrainTestlist, whose lists make the split. Raises UserError.
    """
    if root is None:
        raise UserError("data.root is missing: data=clips needs a folder of class folders")
    path = Path(root).expanduser()
    if not path.is_dir():
        found = "a file" if path.exists() else "not there"
        raise UserError(
            f"data.root={path}: {found}; give a folder of class folders of videos, unpacked"
        )
    lists = next((place for place in _places(path) if place.is_dir()), None)
    if lists is not None:
        return _ucf101(path, lists, split)
    if UCF101 in (path.name, *(folder.name for folder in _folders(path))):
        raise UserError(
            f"data.root={path}: {UCF101} without {LISTS}/, its official splits; unpack "
            "UCF101TrainTestSplits-RecognitionTask.zip beside it"
        )
    if split != 1:
        raise UserError(
            f"data.split={split}: of {UCF101}, and data.root={path} holds no {LISTS}/; leave it out"
        )
    names = files_below(path, SUFFIXES)
    if not names:
        raise UserError(
            f"data.root={path}: no videos there; give a folder of class folders of "
            f"{' '.join(SUFFIXES)} files"
        )
    _check_folders(path, names)
    return arranged(path, names, "videos")


def _check_folders(path: Path, names: list[str]) -> None:
    """Raises UserError for a class without a video: it would have a label and no clips."""
    tops = {folder.name.lower(): folder for folder in _folders(path)}
    splits = [tops["train"]] if "train" in tops else []
    if splits:
        splits += [tops[name] for name in TESTS if name in tops][:1]
    classes = [folder for place in splits or [path] for folder in _folders(place)]
    if len(splits) == 2:  # the test split has every class
        seen = {folder.name for folder in _folders(splits[1])}
        classes += [splits[1] / f.name for f in _folders(splits[0]) if f.name not in seen]
    for folder in sorted(classes, key=lambda folder: natural(folder.name)):
        inside = f"{folder.relative_to(path).as_posix()}/"
        if not any(name.startswith(inside) for name in names):
            raise UserError(
                f"data.root={path}: {inside} holds no videos; put some into it, or take the class away"
            )


def _folders(path: Path) -> list[Path]:
    return [
        entry
        for entry in sorted(path.iterdir())
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    ]


# --- UCF-101 ----------------------------------------------------------------------------------------


def _places(path: Path) -> list[Path]:
    """Where its lists may lie."""
    beside = [path.parent / LISTS] if path.name == UCF101 else []
    return [path / LISTS, *beside]


def _ucf101(path: Path, lists: Path, split: int) -> Listing:
    inside = f"{UCF101}/" if (path / UCF101).is_dir() else ""
    classes = _class_index(lists / "classInd.txt")
    labels = {name: label for label, name in enumerate(classes)}
    splits = []
    for kind in ("train", "test"):
        file = lists / f"{kind}list{split:02}.txt"
        listed: list[list[str]] = [[] for _ in classes]
        for video, label in _listed(file, labels):
            if not (path / inside / video).is_file():
                raise UserError(
                    f"data.root={path}: no {inside}{video}, which {file} lists; unpack UCF101.rar "
                    "again, or take that line out"
                )
            listed[label].append(inside + video)
        for name, videos in zip(classes, listed, strict=True):
            if not videos:
                raise UserError(f"{file}: no video of the class {name}; unpack the lists again")
        names = [name for videos in listed for name in sorted(videos, key=natural)]
        counts = [label for label, videos in enumerate(listed) for _ in videos]
        splits.append(Split(names, counts))
    return Listing(path, classes, *splits)


def _class_index(file: Path) -> list[str]:
    """`1 ApplyEyeMakeup`, … in the order of the numbers."""
    numbered = {}
    for line in _lines(file):
        number, _, name = line.partition(" ")
        if not number.isdigit() or not name or "/" in name:
            raise UserError(f"{file}: {line!r} is not NUMBER CLASS; unpack the lists again")
        numbered[int(number)] = name
    if sorted(numbered) != list(range(1, len(numbered) + 1)) or len(numbered) < 2:
        raise UserError(f"{file}: the classes are not numbered 1, 2, …; unpack the lists again")
    return [numbered[number] for number in sorted(numbered)]


def _listed(file: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    """(CLASS/VIDEO, label) of each line `CLASS/VIDEO` or `CLASS/VIDEO NUMBER`."""
    found = []
    for line in _lines(file):
        video, _, number = line.partition(" ")
        label = labels.get(video.partition("/")[0])
        if label is None or number not in ("", str(label + 1)) or ".." in video.split("/"):
            raise UserError(
                f"{file}: {line!r} is not CLASS/VIDEO of a class of classInd.txt; unpack the lists again"
            )
        found.append((video, label))
    return found


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: not readable ({error}); unpack UCF101TrainTestSplits-RecognitionTask.zip again"
        ) from error
    return [line for line in lines if line]
