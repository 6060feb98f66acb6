"""Files that are not videos are refused by name."""

import av
import numpy as np
import pytest
from support.clip_files import refused


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_files_that_are_not_videos_are_named(clip_folder, workers):
    for content in (b"", b"no video", np.random.default_rng(0).bytes(5000)):
        message = refused(clip_folder, content, workers=workers)
        assert "not a readable video (" in message and "repair or remove it" in message


def test_a_file_with_only_sound_is_refused(clip_folder, tmp_path):
    path = tmp_path / "sound.avi"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
    assert "has no video that can be decoded" in refused(clip_folder, path.read_bytes())
