"""Checks the names in a zip before any entry is read. Does not import torch."""

import re
import zipfile
from pathlib import Path

from eltlab.common.errors import UserError


def read_zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip. Raises UserError if it is damaged, or if a name points outside of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise UserError(
            f"data.root={path}: not a zip, or a damaged one ({error}); give a folder of class folders, "
            "or a zip of one"
        ) from error
    for entry in entries:
        name = entry.orig_filename  # zipfile cuts `filename` at a null byte and replaces os.sep
        if re.match(r"/|[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
            raise UserError(
                f"data.root={path}: the entry {name!r} points outside of the zip, so nothing is read; "
                "create the zip from inside its folder"
            )
    return entries
