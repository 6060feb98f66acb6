"""Finds the files of a folder and sorts them into splits and classes. Does not import torch."""

import os
import re
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.data.sets.listing import TEST_FOLDERS, ListedSplit, Listing, name_some, natural_key

HIDDEN = re.compile(r"(^|/)(\.|__MACOSX(/|$))")  # files and folders that are not part of a set


def walk_folder(root: Path) -> list[str]:
    """Every file below root, as a relative path. Follows links, and stops at cycles."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would skip an unreadable folder silently

    found, entered = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative + os.sep
        found += [prefix + name for name in files]
        real_folder = os.path.realpath(folder)
        subfolders.sort()
        for name in subfolders.copy():
            target = os.path.realpath(os.path.join(folder, name))
            # Each class enters a folder only once. ROOT/SPLIT/CLASS: anything deeper belongs to one class.
            key = (*(prefix + name).split(os.sep)[:2], target)
            if key in entered or Path(real_folder).is_relative_to(target):
                subfolders.remove(name)  # os.walk enters only what is left in its list
            else:
                entered.add(key)
    return found


def sort_visible(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """The names with one of these suffixes, in natural order."""
    visible = [n for n in names if n.lower().endswith(suffixes) and not HIDDEN.search(n)]
    return sorted(visible, key=natural_key)


def arrange_classes(root: Path, names: list[str], unit: str = "images", depth: int = 0) -> Listing:
    """Sorts files into splits and classes by their folders. Raises UserError.

    names: paths relative to root, in natural order. unit: what error messages call the files.
    depth: 1 if all names share a top folder, which is skipped; else 0.
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
            f"data.root={root}: the {unit} in {test_folder}/ are not in class folders; move them into "
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
    """Groups names by their folder at this depth; names without one are dropped."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/", depth + 1)
        if len(parts) == depth + 2:
            groups.setdefault(parts[depth], []).append(name)
    return groups


def _label(classes: list[str], folders: dict[str, list[str]]) -> ListedSplit:
    names = [name for class_name in classes for name in folders.get(class_name, [])]
    labels = [i for i, class_name in enumerate(classes) for _ in folders.get(class_name, [])]
    return ListedSplit(names, labels)
