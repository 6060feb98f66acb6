"""Tokenizers of every kind with small random networks (a pytest plugin)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

import support.vqgan_reference as reference
from eltlab.common.errors import UserError
from eltlab.config.schema import TokenizerConfig
from eltlab.data.images.image_set import ImageSet
from eltlab.data.tokenizers.tokenizer_files import build_tokenizer

KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
}
TAESD = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 1, 1],
    "num_decoder_blocks": [1, 1, 1],
}
VQ = {**KL, "num_vq_embeddings": 24}
# filters, multipliers and blocks of three levels; the first two have the same shape.
VQGAN = (32, [1, 1, 2], 2)


def pictures(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, channels, size // 4, size // 4), generator=generator)
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def saved(kind, at: Path, **config) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(**config)
        for parameter in network.parameters():  # biases too, which start at zero
            parameter.data += 0.1 * torch.randn_like(parameter)
    if kind is VQModel:  # its initial codes are close together compared with the latents
        network.quantize.embedding.weight.data.normal_(0, 0.5)
    network.save_pretrained(at)
    return at


@pytest.fixture(scope="session")
def flax_weights() -> dict:
    """Random parameters of a small VQGAN as flax would hold them."""
    rng, params = np.random.default_rng(0), {"encoder": {}, "decoder": {}}
    x = np.zeros((1, 4, 4, 3), np.float32)
    z = reference.encode(reference.Flax(params["encoder"], rng), x, *VQGAN, 4)
    reference.decode(reference.Flax(params["decoder"], rng), z, *VQGAN)
    for part in params.values():  # so small that the norms' epsilon matters
        part["Conv_0"]["kernel"] *= 0.002
    params["quantizer"] = {"codebook": rng.normal(0, 2, (12, 4)).astype(np.float32)}
    return {"params": params}


@pytest.fixture(scope="session")
def weight_places(tmp_path_factory, flax_weights) -> dict[str, Path]:
    """A folder or file of weights for each kind of tokenizer."""
    root = tmp_path_factory.mktemp("weights")
    vqgan = root / "tokenizer_imagenet256_checkpoint"
    vqgan.write_bytes(reference.to_bytes(flax_weights))
    return {
        "taesd": saved(AutoencoderTiny, root / "taesd", **TAESD),
        "sd_vae": saved(AutoencoderKL, root / "sd_vae", **KL, scaling_factor=0.5, shift_factor=0.2),
        "vqmodel": saved(VQModel, root / "vqmodel", **VQ),
        "maskgit_vqgan": vqgan,
    }


TRAIN = ImageSet("pictures/train", pictures(40), torch.zeros(40).long())
NAMES = ["taesd", "sd_vae", "vqmodel", "maskgit_vqgan", "kmeans"]


def built(weight_places: dict[str, Path], name: str, codes: int = 8, base: str = "sd_vae"):
    if name == "kmeans":
        return build_tokenizer(TokenizerConfig(name, str(weight_places[base]), None, base, codes), TRAIN)
    return build_tokenizer(TokenizerConfig(name, str(weight_places[name])), None)


def refused(config: TokenizerConfig, *parts: str, train=TRAIN) -> None:
    with pytest.raises(UserError) as caught:
        build_tokenizer(config, train)
    message = str(caught.value)
    assert message.startswith("tokenizer") and "\n" not in message and len(message) < 500
    assert [part for part in parts if part not in message] == []


def encoded(tokenizer, images) -> torch.Tensor:
    return tokenizer.encode(images) if tokenizer.kind == "tokens" else tokenizer.encode(images)[0]
