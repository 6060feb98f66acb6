"""Images of all modes and sizes are encoded, and unreadable ones are named."""

import numpy as np
from PIL import Image
from support.encoded_sets import make
from support.errors import fails


def test_odd_modes_and_sizes_are_encoded_and_unreadable_images_named(weights_folder, tmp_path) -> None:
    rng = np.random.default_rng(0)
    odd = {
        "grey.png": Image.fromarray(rng.integers(0, 255, (9, 40), np.uint8)),
        "deep.png": Image.fromarray(rng.integers(0, 60000, (30, 30)).astype(np.uint16)),
        "palette.gif": Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).quantize(8),
        "alpha.png": Image.fromarray(rng.integers(0, 255, (20, 21, 4), np.uint8)),
        "print.jpg": Image.fromarray(rng.integers(0, 255, (50, 20, 3), np.uint8)).convert("CMYK"),
        "dot.bmp": Image.fromarray(rng.integers(0, 255, (1, 1, 3), np.uint8)),
    }
    for split in ("train", "test"):
        for label in ("a", "b"):
            for name, image in odd.items():
                path = tmp_path / "odd" / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    manifest = make(tmp_path / "odd", weights_folder, tmp_path / "set")
    assert manifest.encoding.counts == {"train": 12, "test": 12}
    broken = tmp_path / "odd/train/b/print.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    message = fails(make, tmp_path / "odd", weights_folder, tmp_path / "again")
    assert message.startswith(f"{broken}: not a readable image")
    assert not (tmp_path / "again/manifest.json").exists()
