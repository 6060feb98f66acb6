"""Stamps of files, which show that a file has changed without reading it. Does not import torch."""

import os
from pathlib import Path

from eltlab.data.sets import parquet
from eltlab.data.sets.zip_names import read_zip_entries


def file_stamps(root: Path, names: list[str]) -> list[tuple[int, int]]:
    """(size in bytes, change marker) of each file. At least one of them differs if the content does. Raises
    UserError.

    In a zip, the marker is the CRC of the entry; in Parquet, the CRC of the file's footer. In a folder it is
    the time of the inode's last change, which no program can set, unlike the time of modification.
    """
    if parquet.parquet_files(root):
        return parquet.file_stamps(root, names)
    if root.is_file():
        entries = {entry.filename: entry for entry in read_zip_entries(root)}
        return [(entries[name].file_size, entries[name].CRC) for name in names]
    stats = [os.stat(root / name) for name in names]
    return [(stat.st_size, stat.st_ctime_ns) for stat in stats]
