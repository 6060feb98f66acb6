"""Image sets in Parquet files in the layout of the Hugging Face hub. Does not import torch."""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.errors import UserError, first_line
from eltlab.data.sets.listing import TEST_FOLDERS, ListedSplit, Listing, name_some

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
LABELS = ("label", "labels", "fine_label")  # columns with labels, if the metadata names none


def parquet_files(root: Path) -> list[Path]:
    """The files of a set: root itself, or those in it, or those in its data/. Empty for any other set."""
    if root.suffix == SUFFIX and root.is_file():
        return [root]
    return sorted(root.glob(f"*{SUFFIX}")) or sorted((root / "data").glob(f"*{SUFFIX}"))


def base_folder(root: Path) -> Path:
    """The folder that the names of images are relative to."""
    return root if root.is_dir() else root.parent


def list_rows(root: Path) -> Listing:
    """Every row is an image; its name is FILE:ROW. Raises UserError."""
    classes: list[str] | None = None
    splits: dict[str, ListedSplit] = {}
    for path in parquet_files(root):
        file = _open(path, path.stat().st_mtime_ns)
        _, label_column, class_names = _find_columns(path, file)
        classes = classes or class_names
        # train-00000-of-00014.parquet is a file of the split train.
        split = splits.setdefault(path.stem.split("-")[0].lower(), ListedSplit())
        name = path.relative_to(base_folder(root)).as_posix()
        labels = file.read([label_column], use_threads=False).column(0).to_pylist()
        for row, label in enumerate(labels):
            if not isinstance(label, int):
                raise UserError(f"{path}, row {row}: {label_column}={label} is not a class")
            split.append(f"{name}:{row}", label)
    if len(splits) == 1:  # whatever its name, it is the training split
        splits = {"train": next(iter(splits.values()))}
    train = splits.get("train", ListedSplit())
    if not train.names:
        raise UserError(
            f"data.root={root}: no training rows; by their names, the files are the splits "
            f"{name_some(list(splits))}; give train-….parquet, and a test or validation split next to it"
        )
    # Competitions keep the labels of their test split secret and store -1 instead.
    tests = [splits[name] for name in TEST_FOLDERS if name in splits]
    test = next((split for split in tests if min(split.labels, default=0) >= 0), None)
    used = [train] if test is None else [train, test]
    highest = max(label for split in used for label in split.labels)
    classes = classes or [str(label) for label in range(highest + 1)]
    for split in used:
        for name, label in zip(split.names, split.labels, strict=True):
            if not 0 <= label < len(classes):
                raise UserError(
                    f"{base_folder(root) / name}: label {label}, but there are {len(classes)} classes"
                )
    if len(classes) < 2:
        raise UserError(f"data.root={root}: only one class; give at least two")
    return Listing(root, classes, *(train.hold_out() if test is None else used))


@lru_cache(maxsize=4)
def _open(path: Path, modified: int) -> "ParquetFile":
    """modified: part of the cache key, so that a replaced file is opened again."""
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, memory_map=True)
    except Exception as error:  # Arrow raises many kinds
        raise UserError(f"{path}: not a Parquet file, or damaged ({first_line(error)})") from error


def _find_columns(path: Path, file: "ParquetFile") -> tuple[str, str, list[str] | None]:
    """The columns of the images and labels, and the names of the classes if the file has them. The library
    datasets writes metadata that names the columns; without it, they have usual names."""
    schema = file.schema_arrow
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: dict[str, Any] = metadata.get("info", {}).get("features", {})
    types = {name: f.get("_type") for name, f in features.items() if isinstance(f, dict)}
    images = [name for name in types if types[name] == "Image"]
    images += [name for name in ("image", "img") if name in schema.names]
    labels = [name for name in types if types[name] == "ClassLabel"]
    usual = [name for name in LABELS if name in schema.names]
    if not images or not (labels or usual):
        raise UserError(
            f"{path}: has the columns {', '.join(schema.names)}, but requires image and label, as in sets "
            "of classified images on the Hugging Face hub"
        )
    label = next((name for name in usual if not labels or name in labels), (labels or usual)[0])
    return images[0], label, features.get(label, {}).get("names")


def read_image(root: Path, name: str) -> bytes:
    """The encoded image FILE:ROW. Keeps its row group in memory for the next reads."""
    file, _, row = name.rpartition(":")
    path = base_folder(root) / file
    modified = path.stat().st_mtime_ns
    metadata, group, offset = _open(path, modified).metadata, 0, int(row)
    while offset >= (count := metadata.row_group(group).num_rows):
        group, offset = group + 1, offset - count
    content = _read_row_group(path, modified, group)[offset]["bytes"].as_py()
    if content is None:
        raise ValueError("the image is stored outside the Parquet file")
    return content


@lru_cache(maxsize=2)
def _read_row_group(path: Path, modified: int, group: int) -> Any:
    """The image column of a row group; modified: see `_open`."""
    file = _open(path, modified)
    table = file.read_row_group(group, [_find_columns(path, file)[0]], use_threads=False)
    return table.column(0).combine_chunks()
