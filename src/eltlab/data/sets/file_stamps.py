"""Stamps of files: how a changed file is noticed without reading it. Free of torch."""

import os
from pathlib import Path

from eltlab.data.sets import parquet
from eltlab.data.sets.zip_names import read_zip_entries


def file_stamps(root: Path, names: list[str]) -> list[tuple[int, int]]:
    """(size, change marker) of each file; both together differ if the content does. Raises UserError.

    The marker is the CRC in a zip, and the CRC of the file's footer in Parquet. In a folder it is the
    time of the inode's last change: unlike the time of modification, no copy or unpacker can set it.
    """
    if parquet.is_parquet(root):
        return parquet.file_stamps(root, names)
    if root.is_file():
        entries = {entry.filename: entry for entry in read_zip_entries(root)}
        return [(entries[name].file_size, entries[name].CRC) for name in names]
    stats = [os.stat(root / name) for name in names]
    return [(stat.st_size, stat.st_ctime_ns) for stat in stats]
