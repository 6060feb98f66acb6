"""Networks of diffusers are loaded whole and quietly, or refused."""

import shutil

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from support.tokenizers import KL, NAMES, built, refused, saved

from eltlab.config.schema import TokenizerConfig
from eltlab.data.tokenizers.autoencoders import load_autoencoder
from eltlab.data.tokenizers.tokenizer_files import pack_tokenizer, unpack_tokenizer


@pytest.mark.parametrize("name", NAMES)
def test_loading_draws_nothing_from_the_global_generator(weight_places, name):
    state = torch.get_rng_state()
    tensors = pack_tokenizer(built(weight_places, name))
    unpack_tokenizer(*tensors)
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_prints_nothing(weight_places, capfd):
    """diffusers warns of keys that its own class wrote into the configuration."""
    built(weight_places, "taesd")
    assert capfd.readouterr() == ("", "")


def test_weights_of_another_class_are_refused(weight_places, tmp_path):
    for name, other in (("sd_vae", "vqmodel"), ("vqmodel", "taesd"), ("taesd", "sd_vae")):
        given = weight_places[other]
        refused(TokenizerConfig(name, str(given)), f"tokenizer.weights={given}: ", "is of class")
    refused(TokenizerConfig("sd_vae", str(tmp_path)), "not a complete AutoencoderKL", "save_pretrained")


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "truncated", "grey"])
def test_incomplete_weights_are_refused(weight_places, tmp_path, damage):
    """diffusers itself would continue with random weights in place of missing ones."""
    place = tmp_path / "sd_vae"
    shutil.copytree(weight_places["sd_vae"], place)
    file = place / "diffusion_pytorch_model.safetensors"
    tensors, name = load_file(file), "encoder.conv_in.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unknown":
        tensors["encoder.conv_in.more"] = torch.zeros(1)
    elif damage == "shape":
        tensors[name] = torch.zeros(1, 1, 1, 1)
    save_file(tensors, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-99])
    if damage == "grey":
        shutil.rmtree(place)
        saved(AutoencoderKL, place, **KL, in_channels=1, out_channels=1)
    refused(TokenizerConfig("sd_vae", str(place)), "not a complete AutoencoderKL", "; give a folder")


@pytest.mark.parametrize("name", ["taesd", "vqmodel", "maskgit_vqgan"])
def test_an_unreachable_hub_gives_a_one_line_error(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(
        TokenizerConfig(name, "eltlab-tests/nothing"),
        "tokenizer.weights=eltlab-tests/nothing: ",
        "the download from the Hugging Face hub failed",
        "tokenizer.weights=PATH",
    )


def test_the_hash_depends_on_what_affects_latents_and_on_nothing_else(weight_places, tmp_path):
    first = built(weight_places, "sd_vae").hash
    changes = {"scale": {"scaling_factor": 0.6}, "shift": {"shift_factor": 0.3}}
    plain = {**KL, "scaling_factor": 0.5, "shift_factor": 0.2}
    hashes = {first}
    for name, change in changes.items():
        place = saved(AutoencoderKL, tmp_path / name, **{**plain, **change})
        hashes.add(load_autoencoder("sd_vae", str(place), None).hash)
    assert len(hashes) == 3
    moved = saved(AutoencoderKL, tmp_path / "moved", **plain, sample_size=512, force_upcast=False)
    assert load_autoencoder("sd_vae", str(moved), None).hash == first
