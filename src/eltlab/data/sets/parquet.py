"""Image sets as Hugging Face's hub has them: Parquet files of encoded images and labels. Free of torch."""

import json
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eltlab.common.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
LABELS = ("label", "labels", "fine_label")  # where no column is declared to be of labels


class Columns(NamedTuple):
    image: str
    label: str
    classes: list[str] | None  # in the order of the labels, where the file names them


def is_parquet(root: Path) -> bool:
    """Whether a set of images is one Parquet file, or a folder (or its data/) of them."""
    return bool(files(root))


def files(root: Path) -> list[Path]:
    if root.suffix == SUFFIX and root.is_file():
        return [root]
    here = sorted(root.glob(f"*{SUFFIX}"))
    return here or sorted((root / "data").glob(f"*{SUFFIX}"))


def base(root: Path) -> Path:
    """Names of images begin here."""
    return root if root.is_dir() else root.parent


def split_of(file: Path) -> str:
    """train-00000-of-00014.parquet → train"""
    return file.stem.split("-")[0].lower()


def labelled(root: Path) -> tuple[list[str] | None, dict[str, list[tuple[str, int]]]]:
    """The class names, where the files have them, and (name, label) of each image of each split, in the
    order of the rows. The name is FILE:ROW. Raises UserError."""
    splits: dict[str, list[tuple[str, int]]] = {}
    classes: list[str] | None = None
    for path in files(root):
        file = opened(path)
        columns = columns_of(path, file)
        classes = classes or columns.classes
        name = path.relative_to(base(root)).as_posix()
        labels = file.read([columns.label], use_threads=False).column(0).to_pylist()
        members = splits.setdefault(split_of(path), [])
        for row, label in enumerate(labels):
            if not isinstance(label, int):
                raise UserError(f"{path}, row {row}: {columns.label}={label} is no class")
            members.append((f"{name}:{row}", label))
    return classes, splits


def opened(path: Path) -> "ParquetFile":
    return _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> "ParquetFile":
    """changed: another file in its place is another file."""
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, memory_map=True)
    except Exception as error:  # Arrow's many kinds
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one ({first_line(error)})"
        ) from error


def columns_of(path: Path, file: "ParquetFile") -> Columns:
    """By the features that the library datasets writes down, else by the columns' names."""
    schema = file.schema_arrow
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: dict[str, Any] = known.get("info", {}).get("features", {})
    kinds = {name: f.get("_type") for name, f in features.items() if isinstance(f, dict)}
    images = [name for name in kinds if kinds[name] == "Image"]
    images += [name for name in ("image", "img") if name in schema.names]
    labels = [name for name in kinds if kinds[name] == "ClassLabel"]
    named = [name for name in LABELS if name in schema.names]
    if not images or not (labels or named):
        raise UserError(
            f"{path}: columns {', '.join(schema.names)}; needs image and label, as data sets of "
            "classified images on the hub have them"
        )
    label = next((name for name in named if not labels or name in labels), (labels or named)[0])
    return Columns(images[0], label, features.get(label, {}).get("names"))


def stamps(root: Path, names: list[str]) -> list[tuple[int, int]]:
    """(rows of the file, its CRC) of each image's file: the footer knows the sizes of all columns."""
    marks = {
        path.relative_to(base(root)).as_posix(): (path.stat().st_size, footer_crc(path))
        for path in files(root)
    }
    return [marks[name.rpartition(":")[0]] for name in names]


def footer_crc(path: Path) -> int:
    """Of the metadata at the end: the last four bytes are a mark, the four before them its length."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return zlib.crc32(file.read(length))


def read(root: Path, name: str) -> bytes:
    """The encoded image FILE:ROW. Its neighbours are kept, for whoever reads them next."""
    file, _, row = name.rpartition(":")
    path = base(root) / file
    group, first = _group_of(path, int(row))
    values = _row_group(path, path.stat().st_mtime_ns, group)
    content = values[int(row) - first]["bytes"].as_py()
    if content is None:
        raise ValueError("the image lies outside the Parquet file")
    return content


def _group_of(path: Path, row: int) -> tuple[int, int]:
    """(index, first row) of the row group that holds a row."""
    first = 0
    for group, count in _group_sizes(path):
        if row < first + count:
            return group, first
        first += count
    raise IndexError(row)


def _group_sizes(path: Path) -> Iterator[tuple[int, int]]:
    metadata = opened(path).metadata
    for group in range(metadata.num_row_groups):
        yield group, metadata.row_group(group).num_rows


@lru_cache(maxsize=2)
def _row_group(path: Path, changed: int, group: int) -> Any:
    """The image column of a row group."""
    file = opened(path)
    table = file.read_row_group(group, [columns_of(path, file).image], use_threads=False)
    return table.column(0).combine_chunks()
