"""Autoencoders encode images as scaled latents, from files of diffusers and from the original ones."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from support.image_files import image_config
from support.shared_data import imagenette, shared_file
from support.tokenizers import KL, built, pictures, refused, saved

from eltlab.config.schema import TokenizerConfig
from eltlab.data.images.image_files import load_images
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.autoencoders import load_autoencoder
from eltlab.data.tokenizers.tokenizer import psnr


def test_the_variational_autoencoders_moments_are_scaled(weight_places):
    tokenizer, images = built(weight_places, "sd_vae"), pictures(3)
    original = AutoencoderKL.from_pretrained(weight_places["sd_vae"], low_cpu_mem_usage=False)
    with torch.no_grad():
        gaussian = original.encode(to_float(images)).latent_dist
        shown = to_uint8(original.decode(gaussian.mean).sample)
    mean, logvar = tokenizer.encode(images)
    torch.testing.assert_close(mean, (gaussian.mean - 0.2) * 0.5)
    torch.testing.assert_close(logvar.exp().sqrt(), gaussian.std * 0.5)
    assert (tokenizer.decode(mean).int() - shown.int()).abs().max() <= 1


def test_scales_of_single_channels(tmp_path):
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    saved(AutoencoderKL, tmp_path / "a", **KL, scaling_factor=0.5)
    saved(AutoencoderKL, tmp_path / "b", **KL, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    plain, single = (load_autoencoder("sd_vae", str(tmp_path / ab), None) for ab in "ab")
    (x, _), (y, logvar) = (tokenizer.encode(pictures(2)) for tokenizer in (plain, single))
    for channel in range(4):
        torch.testing.assert_close(y[:, channel], (x[:, channel] / 0.5 - mean[channel]) * 0.5 / std[channel])
    assert logvar.shape == y.shape
    assert (single.decode(y).int() - plain.decode(x).int()).abs().max() <= 1
    assert single.hash != plain.hash


def test_taesd_has_no_variance_and_is_not_rounded_to_bytes(weight_places):
    tokenizer, images = built(weight_places, "taesd"), pictures(2)
    latents, logvar = tokenizer.encode(images)
    assert logvar is None
    original = AutoencoderTiny.from_pretrained(weight_places["taesd"], low_cpu_mem_usage=False)
    with torch.no_grad():
        expected = original.encode(to_float(images)).latents
        shown = to_uint8(original.decode(expected).sample)
    torch.testing.assert_close(latents, expected)
    assert (tokenizer.decode(latents).int() - shown.int()).abs().max() <= 1


def original_taesd(at: Path) -> Path:
    """The two original files of TAESD with random weights. The decoder's layers follow a clamp."""
    network = AutoencoderTiny()
    at.mkdir()
    for part, first in (("encoder", 0), ("decoder", 1)):
        layers = getattr(network, part).layers
        tensors = {}
        for name, value in layers.state_dict().items():
            number, rest = name.split(".", 1)
            tensors[f"{int(number) + first}.{rest}"] = value.bfloat16()
        save_file(tensors, at / f"taesd_{part}.safetensors")
    return at


def test_original_taesd_files_and_those_of_diffusers_give_the_same_tokenizer(tmp_path):
    own = load_autoencoder("taesd", str(original_taesd(tmp_path / "own")), None)
    assert all(value.dtype == torch.float32 for value in own.tensors().values())
    own.network.save_pretrained(tmp_path / "diffusers")
    again = load_autoencoder("taesd", str(tmp_path / "diffusers"), None)
    assert (own.hash, own.factor) == (again.hash, 8)
    below = load_autoencoder("taesd", str(tmp_path), "own")
    assert below.hash == own.hash


@pytest.mark.parametrize("damage", ["missing", "truncated", "other names", "other shapes"])
def test_incomplete_original_taesd_files_are_refused(tmp_path, damage):
    place = original_taesd(tmp_path / "own")
    decoder = place / "taesd_decoder.safetensors"
    tensors = load_file(decoder)
    if damage == "missing":
        decoder.unlink()
    elif damage == "truncated":
        decoder.write_bytes(decoder.read_bytes()[:-9])
    elif damage == "other names":
        save_file({"layer.weight": torch.zeros(2)}, decoder)
    else:
        save_file(tensors | {"19.weight": torch.zeros(4, 64, 3, 3)}, decoder)
    refused(TokenizerConfig("taesd", str(place)), f"tokenizer.weights={place}", "; give ")


@pytest.mark.integration
def test_taesd_reconstructs_photographs():
    """With images in a wrong range or a layer in a wrong place, PSNR is at least 9 dB lower."""
    photographs = load_images(image_config(imagenette(), 128, 10))[1].subset(8).images
    tokenizer = load_autoencoder("taesd", str(shared_file("taesd")), None)
    latents, _ = tokenizer.encode(photographs)
    assert latents.shape == (8, 4, 16, 16) and 0.6 < latents.std() < 1.2
    assert psnr(photographs, tokenizer.decode(latents)) > 20
