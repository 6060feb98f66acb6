"""The rules of encode's keys."""

from collections.abc import Iterable

from eltlab.common.errors import UserError
from eltlab.config.data_rules import check_data, check_samples, choose_extractor
from eltlab.config.keys import check_keys
from eltlab.config.schema import EncodeConfig
from eltlab.config.tokenizer_rules import check_tokenizer

# Keys that have no effect in encode, with the reason. The files of conf/data set some of them for training.
NO_EFFECT = {
    "data.flip": "training mirrors images; flips=true encodes each image mirrored as well",
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


def check_encodable(config: EncodeConfig) -> None:
    """Raises UserError for a set that is encoded already and for an impossible tokenizer."""
    if config.data.kind != "pixels":
        raise UserError(f"data={config.data.name}: encoded already; choose data=images")
    check_tokenizer(config.tokenizer)


def resolve_encode(config: EncodeConfig) -> EncodeConfig:
    """`resolve` for the keys of encode."""
    choose_extractor(config.metrics, config.data)
    check_keys(config)
    if config.data.channels != 3:
        raise UserError(
            f"data.channels={config.data.channels}: tokenizers see and draw colour; give "
            "data.channels=3, which decodes grey images as grey colours (data=images)"
        )
    check_data(config.data, config.metrics)
    check_samples(config)
    return config
