"""Sets of images, folders of classes (plain or zipped) or Parquet files: what is in them, without opening
an image. Free of torch."""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets import parquet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TESTS = ("test", "val", "valid", "validation")  # the first that is there is the test split
TEST_SHARE = 10  # without one, every tenth image of a class is a test image


@dataclass(frozen=True)
class Split:
    """Paths below the root and their labels, by (label, natural order of the paths); of Parquet files in
    the order of their rows."""

    names: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Listing:
    root: Path
    classes: list[str]
    train: Split
    test: Split


_listings: dict[Path, Listing] | None = None  # in `listed_once`


def class_names(root: str | None) -> list[str]:
    """The classes of data.root, in the order of their labels. Raises UserError."""
    return list_images(root).classes


@contextmanager
def listed_once() -> Iterator[None]:
    """In this block a root is listed when it is first asked for, and not again: for a verb that asks for
    classes, then for images, of a tree that may have a million files on a network's disk."""
    global _listings
    before, _listings = _listings, {}
    try:
        yield
    finally:
        _listings = before


def list_images(root: str | None) -> Listing:
    """What data.root holds: ROOT/{train,test}/CLASS/IMAGE or ROOT/CLASS/IMAGE.

    ROOT is a folder, or a zip of it (with or without the folder itself); or Parquet files as the hub
    has them. Raises UserError.
    """
    if root is None:
        raise UserError(
            "data.root is missing: data=images needs a folder or a zip of class folders"
        )
    path = Path(root).expanduser()
    if _listings is None:
        return _listed(path)
    path = path.resolve()  # as it will be asked for next (data_rules.check_source)
    if path not in _listings:
        _listings[path] = _listed(path)
    return _listings[path]


def _listed(path: Path) -> Listing:
    if parquet.is_parquet(path):
        return _list_parquet(path)
    names = [name for name in sorted(_names(path), key=natural) if _is_shown(name, SUFFIXES)]
    if not names:
        raise UserError(
            f"data.root={path}: no images there; give a folder of class folders of "
            f"{' '.join(SUFFIXES)} files, or a zip of one"
        )
    return arranged(path, names, depth=1 if path.is_file() and _has_one_top(names) else 0)


def arranged(path: Path, names: list[str], what: str = "images", depth: int = 0) -> Listing:
    """The splits and classes that these names below path, in their order, lie in. Raises UserError.

    depth: of the folder that holds the classes, or train/ and test/.
    """
    top = _groups(names, depth)
    splits = {name.lower(): members for name, members in top.items()}
    if "train" not in splits:
        classes = _checked_classes(path, top, what)
        return Listing(path, classes, *_held_out(classes, top))
    train = _groups(splits["train"], depth + 1)
    classes = _checked_classes(path, train, what, "train/")
    test_name = next((name for name in TESTS if name in splits), None)
    if test_name is None:
        return Listing(path, classes, *_held_out(classes, train))
    test = _groups(splits[test_name], depth + 1)
    _check_test(path, classes, list(test), test_name, what)
    return Listing(path, classes, _split(classes, train), _split(classes, test))


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts as people count: 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def stamps(root: Path, names: list[str]) -> list[tuple[int, int]]:
    """(size, mark) of each file: another content has another. Raises UserError.

    parquet.stamps says what it is in Parquet files.

    The mark is the CRC in a zip. In a folder it is the time of the last change to the file's inode,
    which an unpacker or a copy cannot set, as it can the time of modification.
    """
    if parquet.is_parquet(root):
        return parquet.stamps(root, names)
    if root.is_file():
        infos = {info.filename: info for info in _entries(root)}
        return [(infos[name].file_size, infos[name].CRC) for name in names]
    stats = [os.stat(root / name) for name in names]
    return [(stat.st_size, stat.st_ctime_ns) for stat in stats]


def is_packed(root: Path) -> bool:
    """Whether the images lie in files whose stamps stay the same when they are copied."""
    return root.is_file() or parquet.is_parquet(root)


# --- Parquet files ----------------------------------------------------------------------------------


def _list_parquet(root: Path) -> Listing:
    _check_unmixed(root)
    names, splits = parquet.labelled(root)
    if "train" not in splits and len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    if not splits.get("train"):
        raise UserError(
            f"data.root={root}: no training rows; its splits are {_some(list(splits))}, after the files' "
            "names; give train-….parquet, and a test or validation split beside it"
        )
    # Competitions keep the labels of their test split: it has -1 in their place.
    tests = [splits[name] for name in TESTS if name in splits]
    test = next((rows for rows in tests if all(label >= 0 for _, label in rows)), None)
    highest = max(label for _, label in splits["train"] + (test or []))
    classes = names or [str(label) for label in range(highest + 1)]
    for name, label in splits["train"] + (test or []):
        if not 0 <= label < len(classes):
            raise UserError(
                f"{parquet.base(root) / name}: label {label} is none of {len(classes)} classes"
            )
    if len(classes) < 2:
        raise UserError(f"data.root={root}: only one class; give at least two")
    train = splits["train"]
    if test is None:
        train, test = _every_tenth(train)
    return Listing(root, classes, _rows(train), _rows(test))


def _check_unmixed(root: Path) -> None:
    """Raises UserError where Parquet files lie beside class folders: which of the two is meant?"""
    classes = [
        folder
        for top in (root, root / "train")
        for folder in sorted(top.glob("*/"))
        if any(_is_shown(file.name, SUFFIXES) for file in folder.iterdir())
    ]
    if len(classes) > 1:  # one may hold the pictures of a set's page
        raise UserError(
            f"data.root={root}: class folders of images ({_some([folder.name for folder in classes])}) "
            f"beside {parquet.files(root)[0].name}; put one of the two elsewhere"
        )


def _every_tenth(rows: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], ...]:
    """(train, test): of each class every tenth row is a test row."""
    seen: Counter[int] = Counter()
    kept: tuple[list[tuple[str, int]], ...] = ([], [])
    for name, label in rows:
        seen[label] += 1
        kept[seen[label] % TEST_SHARE == 0].append((name, label))
    return kept


def _rows(rows: list[tuple[str, int]]) -> Split:
    return Split([name for name, _ in rows], [label for _, label in rows])


# --- reading the names ------------------------------------------------------------------------------


def _names(path: Path) -> list[str]:
    if path.is_dir():
        return _folder_names(path)
    if not path.exists():
        raise UserError(
            f"data.root={path}: not there; give a folder of class folders, or a zip of one"
        )
    return [info.filename for info in _entries(path) if not info.is_dir()]


def _folder_names(root: Path) -> list[str]:
    """Every file below root, relative. Links are followed, but a class enters a folder only once."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would leave the folder out without a word

    found, entered = [], set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=fail):
        place = os.path.relpath(folder, root)
        prefix = "" if place == "." else place + os.sep
        found += [prefix + name for name in files]
        here = os.path.realpath(folder)
        kept = []
        for name in sorted(inner):
            real = os.path.realpath(os.path.join(folder, name))
            # ROOT/SPLIT/CLASS: what lies deeper belongs to one class.
            key = (*(prefix + name).split(os.sep)[:2], real)
            if key not in entered and not Path(here).is_relative_to(real):
                entered.add(key)
                kept.append(name)
        inner[:] = kept
    return found


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip, none of which leads out of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise UserError(
            f"data.root={path}: not a zip, or a damaged one ({error}); give a folder of class folders, "
            "or a zip of one"
        ) from error
    for entry in entries:
        name = entry.orig_filename
        if re.match(r"/|[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
            raise UserError(
                f"data.root={path}: the entry {name!r} leads out of the zip, so none is read; make the "
                "zip from inside its folder"
            )
    return entries


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files below a folder that end so, in natural order; hidden ones are left out."""
    return [name for name in sorted(_folder_names(root), key=natural) if _is_shown(name, suffixes)]


def _is_shown(name: str, suffixes: tuple[str, ...]) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(suffixes) and not hidden


# --- arranging them ---------------------------------------------------------------------------------


def _groups(names: list[str], depth: int) -> dict[str, list[str]]:
    """The names that lie in a folder at this depth, by that folder."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/", depth + 1)
        if len(parts) == depth + 2:
            groups.setdefault(parts[depth], []).append(name)
    return groups


def _has_one_top(names: list[str]) -> bool:
    """Whether a zip holds one folder that holds the classes, or train/ and test/."""
    return len({name.split("/", 1)[0] for name in names}) == 1 and bool(_groups(names, 1))


def _checked_classes(
    path: Path, groups: dict[str, list[str]], what: str, where: str = ""
) -> list[str]:
    classes = sorted(groups, key=natural)
    if not classes:
        raise UserError(
            f"data.root={path}: the {what} lie in {where or 'the folder'} itself; put those of each "
            f"class into a folder of their own, {where}CLASS/"
        )
    if len(classes) == 1:
        raise UserError(
            f"data.root={path}: only one class, {where}{classes[0]}; give at least two class folders"
        )
    return classes


def _check_test(path: Path, classes: list[str], test: list[str], name: str, what: str) -> None:
    if not test:
        raise UserError(
            f"data.root={path}: the {what} in {name}/ lie in no class folder; put those of each class "
            f"into {name}/CLASS/, or take {name}/ away"
        )
    for other in test:
        if other not in classes:
            raise UserError(
                f"data.root={path}: {name}/{other} is a class that train/ lacks; train/ has "
                f"{_some(classes)}"
            )


def _some(classes: list[str]) -> str:
    return ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if classes[10:] else "")


def _split(classes: list[str], groups: dict[str, list[str]]) -> Split:
    names, labels = [], []
    for label, name in enumerate(classes):
        members = groups.get(name, [])
        names += members
        labels += [label] * len(members)
    return Split(names, labels)


def _held_out(classes: list[str], groups: dict[str, list[str]]) -> tuple[Split, Split]:
    """(train, test): every tenth image of each class is a test image."""
    last = TEST_SHARE - 1
    train = {
        key: [name for i, name in enumerate(members) if i % TEST_SHARE != last]
        for key, members in groups.items()
    }
    test = {key: members[last::TEST_SHARE] for key, members in groups.items()}
    return _split(classes, train), _split(classes, test)
