"""Folders of classes: finds the files, and sorts them into splits and classes. Free of torch."""

import os
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets.listing import (
    TEST_FOLDERS,
    ListedSplit,
    Listing,
    name_some,
    natural_key,
)


def walk_folder(root: Path) -> list[str]:
    """Every file below root, as relative paths. Links are followed, but each class enters a folder only
    once, so that loops of links end."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would skip an unreadable folder silently

    found, entered = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative + os.sep
        found += [prefix + name for name in files]
        real_folder = os.path.realpath(folder)
        to_enter = []
        for name in sorted(subfolders):
            target = os.path.realpath(os.path.join(folder, name))
            # ROOT/SPLIT/CLASS: anything deeper belongs to one class. Two classes may share a folder.
            key = (*(prefix + name).split(os.sep)[:2], target)
            if key not in entered and not Path(real_folder).is_relative_to(target):
                entered.add(key)
                to_enter.append(name)
        subfolders[:] = to_enter  # os.walk enters what is left in its list
    return found


def sort_visible(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """The names with one of these suffixes in natural order, without hidden files and folders."""
    return [name for name in sorted(names, key=natural_key) if is_visible(name, suffixes)]


def is_visible(name: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(suffixes) and not hidden


def arrange_classes(root: Path, names: list[str], unit: str = "images", depth: int = 0) -> Listing:
    """Sorts files into splits and classes by their folders. Raises UserError.

    Args:
        names: relative to root, in natural order.
        unit: what error messages call the files.
        depth: of the folders train/ and test/, or of the classes; 1 if the names share a top folder.
    """
    folders = group_by_folder(names, depth)
    splits = {name.lower(): members for name, members in folders.items()}
    train_folder = "train/" if "train" in splits else ""
    if train_folder:
        folders = group_by_folder(splits["train"], depth + 1)
    classes = sorted(folders, key=natural_key)
    if not classes:
        raise UserError(
            f"data.root={root}: the {unit} are directly in {train_folder or 'the folder'}; give each class "
            f"its own folder, {train_folder}CLASS/"
        )
    if len(classes) == 1:
        raise UserError(
            f"data.root={root}: only one class, {train_folder}{classes[0]}; give at least two class folders"
        )
    train = _label(classes, folders)
    test_folder = next((name for name in TEST_FOLDERS if train_folder and name in splits), None)
    if test_folder is None:
        return Listing(root, classes, *train.hold_out())
    folders = group_by_folder(splits[test_folder], depth + 1)
    if not folders:
        raise UserError(
            f"data.root={root}: the {unit} in {test_folder}/ are in no class folder; move them into "
            f"{test_folder}/CLASS/, or remove {test_folder}/"
        )
    for name in folders:
        if name not in classes:
            raise UserError(
                f"data.root={root}: {test_folder}/{name} is a class that train/ does not have; train/ has "
                f"{name_some(classes)}"
            )
    return Listing(root, classes, train, _label(classes, folders))


def group_by_folder(names: list[str], depth: int) -> dict[str, list[str]]:
    """The names that are inside a folder at this depth, by that folder."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/", depth + 1)
        if len(parts) == depth + 2:
            groups.setdefault(parts[depth], []).append(name)
    return groups


def _label(classes: list[str], folders: dict[str, list[str]]) -> ListedSplit:
    split = ListedSplit()
    for label, class_name in enumerate(classes):
        for name in folders.get(class_name, []):
            split.append(name, label)
    return split
