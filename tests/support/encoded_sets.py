"""Small encoded sets of real photographs, by tokenizers with random weights (a pytest plugin)."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from eltlab.config.schema import Config
from eltlab.data.encoded.manifest import Manifest, read_manifest
from eltlab.evaluation.encode_set import encode
from eltlab.runs.compose_config import compose_encode
from support.shared_data import photographs
from support.tiny_run import tiny
from support.tokenizers import KL

# Two levels: one latent position of two channels covers 2x2 pixels.
TAESD = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}
CPU = torch.device("cpu")


def tokenizer_weights(root: Path) -> Path:
    """Saves networks with random weights in folders sd_vae and taesd, in the format of diffusers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(**KL, latent_channels=2).save_pretrained(root / "sd_vae")
        AutoencoderTiny(**TAESD, latent_channels=2).save_pretrained(root / "taesd")
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
    encode(compose_encode(asked(images, weights, out, *overrides, tokenizer=tokenizer)), out)
    return read_manifest(out)


def on(root: Path, *overrides: str, kind: str = "latents") -> Config:
    """A tiny run on an encoded set."""
    objective, codes = {"latents": ("diffusion", 1024), "tokens": ("masked", 0)}[kind]
    data = [f"data={kind}", f"data.root={root}", "data.workers=0", f"data.codebook={codes}"]
    return tiny(*data, f"objective={objective}", *overrides)


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*.safetensors")}


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """Three classes of 12 training and 4 test photographs."""
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory) -> Path:
    return tokenizer_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def latent_set(photo_folder, weights_folder, tmp_path_factory) -> Path:
    """A set of means and log-variances."""
    return make(photo_folder, weights_folder, tmp_path_factory.mktemp("latents") / "set").root


@pytest.fixture(scope="session")
def token_set(photo_folder, weights_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "set"
    return make(photo_folder, weights_folder, out, tokenizer="kmeans").root


@pytest.fixture
def copied_set(latent_set, tmp_path) -> Path:
    """A copy of the set that a test may damage."""
    return Path(shutil.copytree(latent_set, tmp_path / "copy"))
