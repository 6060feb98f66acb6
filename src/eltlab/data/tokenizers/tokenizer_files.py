"""Tokenizers by name: built from a configuration, written to one file and read from it again."""

import json
from pathlib import Path

from safetensors.torch import save

from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.tensor_files import read_tensors
from eltlab.config.schema import TokenizerConfig
from eltlab.config.tokenizer_rules import CONTINUOUS, check
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.autoencoders import Autoencoder, load_autoencoder, restore
from eltlab.data.tokenizers.codebooks import (
    Codebook,
    LatentCodebook,
    MaskgitVqgan,
    VqModel,
    fit_latent_codebook,
)
from eltlab.data.tokenizers.diffusers_models import load_pretrained, rebuild
from eltlab.data.tokenizers.frozen_networks import Settings, Tensors, fingerprint
from eltlab.data.tokenizers.maskgit_vqgan import vqgan_of
from eltlab.data.tokenizers.maskgit_vqgan_files import load_vqgan

Tokenizer = Autoencoder | Codebook
METADATA = "eltlab.tokenizer"  # the key of the settings in a file's metadata


def build_tokenizer(
    config: TokenizerConfig,
    train: Images | None,
    device: str = "cpu",
    fitted: LatentCodebook | None = None,
) -> Tokenizer:
    """On this device; kmeans is fitted to train there, where the cache has no codes yet.

    fitted: taken instead where its base and its count of codes are those asked for.
    Raises UserError where the configuration, the weights or the hub do not allow it.
    """
    check(config)
    name, subfolder = config.name, config.subfolder
    assert config.weights is not None
    if name == "vqmodel":
        return VqModel(name, load_pretrained(name, config.weights, subfolder)).to(device)
    if name == "maskgit_vqgan":
        return MaskgitVqgan(name, load_vqgan(config.weights, subfolder)).to(device)
    if name in CONTINUOUS:
        return load_autoencoder(name, config.weights, subfolder).to(device)
    if train is None:
        raise UserError("tokenizer=kmeans is fitted to images; give data= with a training split")
    assert config.base is not None and config.codes is not None
    base = load_autoencoder(config.base, config.weights, subfolder).to(device)
    if fitted is not None and fitted.codebook == config.codes and fitted.network.hash == base.hash:
        return fitted.to(device)
    return fit_latent_codebook(name, base, train, config.codes).to(device)


# --- one file -------------------------------------------------------------------------------------


def tokenizer_tensors(tokenizer: Tokenizer) -> tuple[Tensors, Settings]:
    """All that a tokenizer is: its tensors on the CPU, and settings that JSON can hold."""
    tensors = {name: value.cpu().contiguous() for name, value in tokenizer.tensors().items()}
    return tensors, {**tokenizer.settings(), "hash": tokenizer.hash}


def tokenizer_of(tensors: Tensors, settings: Settings) -> Tokenizer:
    """The tokenizer of `tokenizer_tensors`, on the CPU. Raises UserError where they are not whole."""
    known = {key: value for key, value in settings.items() if key != "hash"}
    if fingerprint(tensors, known) != settings.get("hash"):
        raise UserError(
            f"damaged: its tokenizer is not the one that its hash names ({settings.get('hash')}); "
            "make it again"
        )
    name = known["name"]
    if name == "kmeans":
        under = {
            key.removeprefix("base."): value
            for key, value in tensors.items()
            if key.startswith("base.")
        }
        return LatentCodebook(name, restore(known["base"], under), tensors["codes"])
    if name == "maskgit_vqgan":
        return MaskgitVqgan(name, vqgan_of(tensors))
    if name == "vqmodel":
        return VqModel(name, rebuild(known, tensors))
    return restore(known, tensors)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """One safetensors file that `load_tokenizer` needs nothing else beside."""
    tensors, settings = tokenizer_tensors(tokenizer)
    # One key alone: safetensors writes several in any order, and equal sets have equal files.
    metadata = {METADATA: json.dumps(settings, sort_keys=True)}
    # Not by save_file, which has an error of its own for a full disk.
    write_atomic(path, save(tensors, metadata))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `save_tokenizer` wrote, on the CPU and with its hash. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a tokenizer that eltlab wrote")
    tensors, metadata = read_tensors(path, "make the tokenizer again")
    try:
        settings = dict(json.loads(metadata[METADATA]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: of another program; give a tokenizer that eltlab wrote") from None
    try:
        return tokenizer_of(tensors, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
