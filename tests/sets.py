"""Small encoded sets for tests: real photographs if available, tokenizers with random weights."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from eltlab.data.encoded.manifest import Manifest, read_manifest
from eltlab.evaluation.encode_set import encode
from eltlab.runs.compose_config import compose_encode

# Two levels: one latent position of two channels covers 2x2 pixels.
KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "latent_channels": 2,
}
TINY = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
    "latent_channels": 2,
}


def tokenizer_weights(root: Path) -> Path:
    """Saves networks with random weights in folders sd_vae and taesd, in the format of diffusers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(**KL).save_pretrained(root / "sd_vae")
        AutoencoderTiny(**TINY).save_pretrained(root / "taesd")
    return root


def photographs(root: Path, classes: int = 3, train: int = 12, test: int = 4) -> Path:
    """A folder of this many Imagenette photographs per class; skips if ELTLAB_DATA is not set."""
    data = os.environ.get("ELTLAB_DATA")
    if not data:
        pytest.skip("ELTLAB_DATA is not set: no photographs")
    with zipfile.ZipFile(Path(data) / "imagenette_128_jpeg.zip") as archive:
        wanted = {"train": train, "val": test}
        by_class: dict[tuple[str, str], list[str]] = {}
        for name in archive.namelist():
            parts = name.split("/")
            if name.endswith(".jpeg"):
                by_class.setdefault((parts[-3], parts[-2]), []).append(name)
        for split, count in wanted.items():
            for label in sorted({label for of, label in by_class if of == split})[:classes]:
                for name in by_class[split, label][:count]:
                    path = root / split / label / Path(name).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
    return root


def asked(images: Path, weights: Path, out: Path, *overrides: str, tokenizer: str = "sd_vae") -> list[str]:
    """Overrides of encode: photographs at 16 pixels, shards of five."""
    place = weights / (tokenizer if tokenizer != "kmeans" else "sd_vae")
    return [
        *(f"data.root={images}", "data.size=16", "data.workers=0", f"tokenizer={tokenizer}"),
        *(["tokenizer.base=sd_vae", "tokenizer.codes=12"] if tokenizer == "kmeans" else []),
        *(f"tokenizer.weights={place}", f"out={out}", "shard=5", "batch=4", "accelerator=cpu"),
        *("metrics.samples=12", "evaluate=false", *overrides),
    ]


def make(images: Path, weights: Path, out: Path, *overrides: str, tokenizer: str = "sd_vae") -> Manifest:
    """Encodes in this process."""
    config = compose_encode(asked(images, weights, out, *overrides, tokenizer=tokenizer))
    encode(config, out)
    return read_manifest(out)
