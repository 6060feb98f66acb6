"""Fills in what the files of data.root decide: classes, and the shape of an encoded set. Free of torch."""

from eltlab.common.errors import UserError
from eltlab.config.data_rules import check_clips
from eltlab.config.schema import DataConfig
from eltlab.data.encoded.manifest import fill_from_manifest
from eltlab.data.sets.image_listing import list_images
from eltlab.data.sets.video_listing import list_videos


def fill_from_files(data: DataConfig) -> None:
    """Fills in what data.root says about itself. Raises UserError."""
    check_clips(data)
    if data.classes == 0 and data.name == "images":
        data.classes = len(list_images(data.root).classes)
    if data.classes == 0 and data.name == "clips":
        data.classes = len(list_videos(data.root, data.split).classes)
    # A stored configuration was filled in before: its `encoding` says so, and the set may have moved.
    incomplete = 0 in (data.size, data.classes)
    if data.kind != "pixels" and (incomplete or data.encoding is None):
        if data.root is not None:
            fill_from_manifest(data)
        elif incomplete:
            raise UserError(
                f"data.root is missing: data={data.name} requires the folder that python -m eltlab.encode "
                "wrote"
            )
