"""Grids of images and of clips, as files that show and play them."""

import av
import numpy as np
import torch
from PIL import Image

from eltlab.common.image_grids import save_grid


def test_small_images_are_enlarged_by_a_whole_factor(tmp_path):
    rows = [torch.randint(256, (n, channels, 20, 20), dtype=torch.uint8) for n, channels in ((3, 3), (2, 1))]
    save_grid(tmp_path / "a.png", rows, ["", ""])
    with Image.open(tmp_path / "a.png") as opened:
        grid = torch.tensor(np.array(opened))
    assert grid.shape == (4 + 2 * 64, 4 + 3 * 64, 3)  # tiles of 60 pixels with margins of 4
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            tile = grid[4 + 64 * i :, 4 + 64 * j :][:60, :60].movedim(-1, 0)
            assert torch.equal(tile[:, ::3, ::3], image.expand(3, -1, -1))
            assert torch.equal(tile[:, ::3, ::3], tile[:, 2::3, 2::3])
    assert (grid[4 + 64 :, 4 + 2 * 64 :] == 255).all()  # the shorter row ends in white


def test_a_grid_of_clips_is_animated(tmp_path):
    rows = [torch.randint(256, (2, 5, 3, 32, 32), dtype=torch.uint8) for _ in range(2)]
    rows[0][0] = torch.arange(5).view(5, 1, 1, 1).mul(60).expand(5, 3, 32, 32)
    save_grid(tmp_path / "a.gif", rows, ["1 loop", "2 loops"])
    save_grid(tmp_path / "a.mp4", rows, ["", ""])
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.n_frames == 5 and opened.info["loop"] == 0
    with av.open(str(tmp_path / "a.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 4 * 5
    grey = [frame[20, 20].mean() for frame in frames]
    assert np.abs(np.subtract(grey, [0, 60, 120, 180, 240] * 4)).max() < 12
