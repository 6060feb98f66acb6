"""Image sets in Parquet files, as the Hugging Face hub has them: encoded images and labels. Free of torch."""

import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eltlab.common.errors import UserError, first_line
from eltlab.data.sets.listing import TEST_FOLDERS, ListedSplit, Listing, name_some

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
LABELS = (
    "label",
    "labels",
    "fine_label",
)  # if the metadata does not say which column has the labels


class Columns(NamedTuple):
    image: str
    label: str
    classes: list[str] | None  # in the order of the labels, if the file names them


def is_parquet(root: Path) -> bool:
    """Whether a set is one Parquet file, or a folder with Parquet files in it or in its data/."""
    return bool(files(root))


def files(root: Path) -> list[Path]:
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
    for path in files(root):
        file = open_parquet(path)
        columns = find_columns(path, file)
        classes = classes or columns.classes
        # train-00000-of-00014.parquet is a file of the split train.
        split = splits.setdefault(path.stem.split("-")[0].lower(), ListedSplit())
        name = path.relative_to(base_folder(root)).as_posix()
        labels = file.read([columns.label], use_threads=False).column(0).to_pylist()
        for row, label in enumerate(labels):
            if not isinstance(label, int):
                raise UserError(f"{path}, row {row}: {columns.label}={label} is not a class")
            split.append(f"{name}:{row}", label)
    if len(splits) == 1:  # it is the training split, whatever its name
        splits = {"train": next(iter(splits.values()))}
    train = splits.get("train", ListedSplit())
    if not train.names:
        raise UserError(
            f"data.root={root}: no training rows; by their names, the files are the splits "
            f"{name_some(list(splits))}; give train-….parquet, and a test or validation split next to it"
        )
    # Competitions keep the labels of their test split secret: it has -1 instead.
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


def open_parquet(path: Path) -> "ParquetFile":
    return _open(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _open(path: Path, modified: int) -> "ParquetFile":
    """modified: part of the key, so that a replaced file is opened again."""
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, memory_map=True)
    except Exception as error:  # Arrow raises many kinds
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one ({first_line(error)})"
        ) from error


def find_columns(path: Path, file: "ParquetFile") -> Columns:
    """The columns that the metadata of the library datasets names, else those with the usual names."""
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
            f"{path}: has the columns {', '.join(schema.names)}, but requires image and label, as sets of "
            "classified images on the Hugging Face hub have them"
        )
    label = next((name for name in usual if not labels or name in labels), (labels or usual)[0])
    return Columns(images[0], label, features.get(label, {}).get("names"))


def file_stamps(root: Path, names: list[str]) -> list[tuple[int, int]]:
    """(bytes, CRC of the footer) of the file of each image: the footer has the sizes of all columns."""
    stamps = {
        path.relative_to(base_folder(root)).as_posix(): (path.stat().st_size, _footer_crc(path))
        for path in files(root)
    }
    return [stamps[name.rpartition(":")[0]] for name in names]


def _footer_crc(path: Path) -> int:
    """The file ends with the metadata, four bytes of their length and the four bytes PAR1."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return zlib.crc32(file.read(length))


def read_image(root: Path, name: str) -> bytes:
    """The encoded image FILE:ROW. Its row group stays in memory for the next reads."""
    file, _, row = name.rpartition(":")
    path = base_folder(root) / file
    group, offset = _find_row(path, int(row))
    images = _read_row_group(path, path.stat().st_mtime_ns, group)
    content = images[offset]["bytes"].as_py()
    if content is None:
        raise ValueError("the image is stored outside the Parquet file")
    return content


def _find_row(path: Path, row: int) -> tuple[int, int]:
    """(row group, row within it) of a row of the file."""
    metadata = open_parquet(path).metadata
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < count:
            return group, row
        row -= count
    raise IndexError(row)


@lru_cache(maxsize=2)
def _read_row_group(path: Path, modified: int, group: int) -> Any:
    """The image column of a row group; modified: see `_open`."""
    file = open_parquet(path)
    table = file.read_row_group(group, [find_columns(path, file).image], use_threads=False)
    return table.column(0).combine_chunks()
