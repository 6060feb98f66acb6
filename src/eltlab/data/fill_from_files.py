"""Fills in the keys that the files in data.root decide, such as data.classes. Does not import torch."""

from eltlab.common.errors import UserError
from eltlab.config.data_rules import check_clips
from eltlab.config.schema import DataConfig
from eltlab.data.encoded.manifest import fill_from_manifest
from eltlab.data.sets.image_listing import list_images
from eltlab.data.sets.video_listing import list_videos


def fill_from_files(data: DataConfig) -> None:
    """Raises UserError if files are missing, or the configuration differs from the set."""
    check_clips(data)
    if data.classes == 0:
        data.classes = len(listed_classes(data))
    # A stored configuration has an encoding: it is already filled in, and its set may have moved.
    incomplete = 0 in (data.size, data.classes)
    if data.kind != "pixels" and (incomplete or data.encoding is None):
        if data.root is not None:
            fill_from_manifest(data)
        elif incomplete:
            raise UserError(
                f"data.root is missing: data={data.name} requires the folder that python -m eltlab.encode "
                "wrote"
            )


def listed_classes(data: DataConfig) -> list[str]:
    """The classes of a set of files in the order of their labels; empty for any other set."""
    if data.name == "images":
        return list_images(data.root).classes
    return list_videos(data.root, data.split).classes if data.name == "clips" else []
