"""Pretrained and fitted tokenizers: built from a configuration, saved in one file and loaded from it."""

import json
from pathlib import Path

from safetensors.torch import save

from eltlab.common.errors import UserError
from eltlab.common.files import write_atomic
from eltlab.common.tensor_files import read_tensors
from eltlab.config.encode_rules import CONTINUOUS, check_tokenizer
from eltlab.config.schema import TokenizerConfig
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.autoencoders import Autoencoder, load_autoencoder
from eltlab.data.tokenizers.codebooks import LatentCodebook, MaskgitVqgan, VqModel, fit_latent_codebook
from eltlab.data.tokenizers.diffusers_models import load_pretrained, rebuild
from eltlab.data.tokenizers.maskgit_vqgan import build_vqgan
from eltlab.data.tokenizers.maskgit_vqgan_files import load_vqgan
from eltlab.data.tokenizers.tokenizer import FrozenTokenizer, Settings, Tensors, fingerprint

METADATA = "eltlab.tokenizer"  # the key of the settings in a file's metadata


def build_tokenizer(
    config: TokenizerConfig, train: Images | None, device: str = "cpu", fitted: LatentCodebook | None = None
) -> FrozenTokenizer:
    """The tokenizer of a configuration, on this device. kmeans is fitted to train if the cache has no codes.
    fitted: returned instead of fitting if it has the requested base and number of codes. Raises UserError if
    the configuration is wrong, or the weights or the hub cannot be read."""
    check_tokenizer(config)
    name, weights, subfolder = config.name, config.weights, config.subfolder
    assert weights is not None
    if name == "vqmodel":
        return VqModel(name, load_pretrained(name, weights, subfolder)).to(device)
    if name == "maskgit_vqgan":
        return MaskgitVqgan(name, load_vqgan(weights, subfolder)).to(device)
    if name in CONTINUOUS:
        return load_autoencoder(name, weights, subfolder).to(device)
    if train is None:
        raise UserError("tokenizer=kmeans is fitted to images; give data= with a training split")
    assert config.base is not None and config.codes is not None
    base = load_autoencoder(config.base, weights, subfolder).to(device)
    if fitted is not None and fitted.codebook == config.codes and fitted.network.hash == base.hash:
        return fitted.to(device)
    return fit_latent_codebook(name, base, train, config.codes).to(device)


def pack_tokenizer(tokenizer: FrozenTokenizer) -> tuple[Tensors, Settings]:
    """The whole tokenizer: its tensors on the CPU, and settings that can be written as JSON."""
    tensors = {name: value.cpu().contiguous() for name, value in tokenizer.tensors().items()}
    return tensors, {**tokenizer.settings(), "hash": tokenizer.hash}


def unpack_tokenizer(tensors: Tensors, settings: Settings) -> FrozenTokenizer:
    """The tokenizer that `pack_tokenizer` packed, on the CPU. Raises UserError if they do not match."""
    known = {key: value for key, value in settings.items() if key != "hash"}
    if fingerprint(tensors, known) != settings.get("hash"):
        found = settings.get("hash")
        raise UserError(f"damaged: its tokenizer does not match its hash {found}; make it again")
    name = known["name"]
    if name == "kmeans":
        weights = {key.removeprefix("base."): value for key, value in tensors.items()}
        del weights["codes"]
        base = Autoencoder(known["base"]["name"], rebuild(known["base"], weights))
        return LatentCodebook(name, base, tensors["codes"])
    if name == "maskgit_vqgan":
        return MaskgitVqgan(name, build_vqgan(tensors))
    network = rebuild(known, tensors)
    return VqModel(name, network) if name == "vqmodel" else Autoencoder(name, network)


def save_tokenizer(tokenizer: FrozenTokenizer, path: Path) -> None:
    """One safetensors file, from which `load_tokenizer` loads the tokenizer without other files."""
    tensors, settings = pack_tokenizer(tokenizer)
    # A single metadata key: safetensors writes several in random order, and equal sets need equal files.
    metadata = {METADATA: json.dumps(settings, sort_keys=True)}
    # Not by save_file, which raises its own error if the disk is full.
    write_atomic(path, save(tensors, metadata))


def load_tokenizer(path: Path) -> FrozenTokenizer:
    """The tokenizer that `save_tokenizer` wrote, on the CPU. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a tokenizer that eltlab wrote")
    tensors, metadata = read_tensors(path, "create the tokenizer again")
    try:
        settings = dict(json.loads(metadata[METADATA]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not written by eltlab; give a tokenizer that eltlab wrote") from None
    try:
        return unpack_tokenizer(tensors, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
