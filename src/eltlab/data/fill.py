"""Fills in what the files in data.root decide: classes, and the shape of an encoded set. Free of torch."""

from eltlab.common.errors import UserError
from eltlab.config.data_rules import check_clips
from eltlab.config.schema import DataConfig
from eltlab.data.encoded.manifest import fill_from_manifest
from eltlab.data.sets.folders import class_names
from eltlab.data.sets.videofolders import video_classes


def fill_data(data: DataConfig) -> None:
    """Fills in what data.root says of itself. Raises UserError."""
    check_clips(data)
    if data.classes == 0 and data.name == "images":
        data.classes = len(class_names(data.root))
    if data.classes == 0 and data.name == "clips":
        data.classes = len(video_classes(data.root, data.split))
    # A configuration that was filled in before says so by its encoding, and needs no set in its place.
    blank = 0 in (data.size, data.classes)
    if data.kind != "pixels" and (blank or data.encoding is None):
        if data.root is not None:
            fill_from_manifest(data)
        elif blank:
            raise UserError(
                f"data.root is missing: data={data.name} needs the folder that python -m eltlab.encode wrote"
            )
