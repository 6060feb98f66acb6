"""The rules of encode's keys: tokenizers, and keys that only training uses."""

from collections.abc import Iterable

from eltlab.common.errors import UserError, suggest
from eltlab.config.data_rules import check_data, check_samples, choose_extractor
from eltlab.config.keys import check_keys
from eltlab.config.schema import EncodeConfig, TokenizerConfig

CONTINUOUS = ("taesd", "sd_vae")
TOKENIZERS = (*CONTINUOUS, "vqmodel", "maskgit_vqgan", "kmeans")

# Keys that have no effect in encode, and why. The files of conf/data set some of them for training.
NO_EFFECT = {
    "data.flip": "training mirrors images; flips=true encodes each image mirrored as well",
    "data.tuning": "training holds a tenth of its split back; a set has both parts",
    "data.codebook": "codes over patches of pixels; tokenizer=kmeans has tokenizer.codes",
    "data.patch": "a tokenizer has its own positions",
    "data.frame_patch": "a tokenizer sees each frame on its own",
    "data.factor": "a tokenizer has its own positions",
    "data.encoding": "the id of a set that is encoded already",
    "metrics.images": "for encoded sets; the images to encode are in data.root",
}


def check_effect(keys: Iterable[str]) -> None:
    """Raises UserError for a key that has no effect in encode."""
    for key in keys:
        if key in NO_EFFECT:
            raise UserError(f"{key} has no effect in encode ({NO_EFFECT[key]}). Remove it.")


def check_tokenizer(config: TokenizerConfig) -> None:
    """Raises UserError if the keys describe no tokenizer. Reads no file."""
    name, base, codes = config.name, config.base, config.codes
    if name not in TOKENIZERS:
        raise UserError(f"tokenizer.name={name}: {suggest(name, TOKENIZERS, 'tokenizers')}")
    if config.weights is None:
        raise UserError(
            f"tokenizer.weights=null: {name} needs weights; give a path, or a hub id (owner/name)"
        )
    if name != "kmeans":
        for key, value in (("base", base), ("codes", codes)):
            if value is not None:
                raise UserError(f"tokenizer.{key}={value} applies to kmeans only. Remove it.")
    elif base not in CONTINUOUS:
        raise UserError(
            f"tokenizer.base={base or 'null'}: kmeans needs a continuous tokenizer; "
            f"choose {' or '.join(CONTINUOUS)}"
        )
    elif codes is None or codes < 2:
        raise UserError(f"tokenizer.codes={codes or 'null'}: give at least 2")


def resolve_encode(config: EncodeConfig) -> EncodeConfig:
    """`resolve` for the keys of encode."""
    choose_extractor(config.metrics, config.data)
    check_keys(config)
    if config.data.channels != 3:
        raise UserError(
            f"data.channels={config.data.channels}: tokenizers encode colour images; give "
            "data.channels=3, which turns grey images into colour images (data=images)"
        )
    check_data(config.data, config.metrics)
    check_samples(config)
    return config
