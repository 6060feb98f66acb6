"""Folders of classes, plain or zipped: what is in them, without opening an image. Free of torch."""

from pathlib import Path

from eltlab.errors import UserError


def class_names(root: str | None) -> list[str]:
    """The classes of data.root, in the order of their labels. Raises UserError."""
    if root is None:
        raise UserError("data.root is missing: data=images needs a folder or a zip of class folders")
    raise NotImplementedError(Path(root))
