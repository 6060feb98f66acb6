"""The clips of data=sprites are composed from the sheets, in the official split."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from support.shared_data import sprite_sheets

from eltlab.common.errors import UserError
from eltlab.data.clips.sprites import CLASSES, compose_figure, load_sprites, read_sheets


def test_the_split_is_the_official_one(few_sprites):
    train, test = load_sprites(few_sprites)
    assert train.shape == (8, 3, 64, 64) and train.images.dtype == torch.uint8
    assert (len(train), len(test)) == (9 * 10, 9 * 6)
    for split, count in ((train, 10), (test, 6)):
        assert split.labels.tolist() == [label for label in range(9) for _ in range(count)]
    sheets = read_sheets(few_sprites)
    order = np.random.RandomState(423).permutation(16)
    for place, figure in ((0, order[0]), (9, order[9])):
        clips = torch.from_numpy(compose_figure(sheets, int(figure)))
        for label in range(9):
            assert torch.equal(train.images[10 * label + place], clips[label])
    assert torch.equal(test.images[0], torch.from_numpy(compose_figure(sheets, int(order[10])))[0])


def blend_over(under: np.ndarray, sheet: np.ndarray) -> np.ndarray:
    """Porter and Duff's `over` on an opaque background, in floating point."""
    alpha = sheet[..., 3:] / 255
    return sheet[..., :3] * alpha + under * (1 - alpha)


def test_a_figure_is_its_layers_in_the_cells_of_its_class():
    sheets = read_sheets(sprite_sheets())
    body, trousers, top, hair = 1, 4, 0, 5
    number = ((body * 6 + trousers) * 6 + top) * 6 + hair
    whole = np.zeros((1344, 832, 3))
    for name in ("body/1", "bottomwear/4", "topwear/0", "hair/5", "shoes/1"):
        whole = blend_over(whole, sheets[f"{name}.png"])
    clips = compose_figure(sheets, number).astype(float)
    cells = {"walk front": (10, 8), "spellcard left": (1, 0), "slash right": (15, 0)}
    for name, (row, column) in cells.items():
        cell = whole[64 * row : 64 * row + 64, 64 * column : 64 * column + 64].transpose(2, 0, 1)
        assert np.abs(clips[CLASSES.index(name), 0] - cell).max() <= 2  # Pillow rounds after every layer
    # Frame 6 of a spell shows the cell of frame 4 again.
    assert np.array_equal(clips[3, 4], clips[3, 6]) and not np.array_equal(clips[3, 4], clips[3, 5])


def test_a_folder_and_a_tar_of_the_sheets_are_equal(few_sprites, tmp_path):
    with tarfile.open(few_sprites) as archive:
        archive.extractall(tmp_path / "sheets", filter="data")
    assert load_sprites(str(tmp_path / "sheets"))[0].origin == load_sprites(few_sprites)[0].origin


@pytest.mark.parametrize("broken", ["missing", "torn", "small", "tar", "none"])
def test_missing_or_wrong_sheets_are_named(few_sprites, tmp_path, broken):
    with tarfile.open(few_sprites) as archive:
        archive.extractall(tmp_path, filter="data")
    sheet, root = tmp_path / "hair" / "1.png", tmp_path
    if broken == "missing":
        sheet.unlink()
    elif broken == "torn":
        sheet.write_bytes(sheet.read_bytes()[:100])
    elif broken == "small":
        Image.new("RGBA", (64, 64)).save(sheet)
    elif broken == "tar":
        root = sheet
    with pytest.raises(UserError) as caught:
        load_sprites(None if broken == "none" else str(root))
    message = str(caught.value)
    assert "\n" not in message
    expected = {
        "missing": "no hair/1.png",
        "torn": "hair/1.png: not a sprite sheet (",
        "small": "hair/1.png: not a sprite sheet (64x64 pixels, not 832x1344)",
        "tar": "not a tar",
        "none": "data.root is missing: data=sprites",
    }
    assert expected[broken] in message
