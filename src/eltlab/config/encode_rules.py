"""The rules of encode's keys."""

from collections.abc import Iterable

from eltlab.common.errors import UserError
from eltlab.config.checks import at_least, one_of
from eltlab.config.data_rules import (
    check_metric_places,
    check_samples,
    check_source,
    choose_extractor,
)
from eltlab.config.schema import EncodeConfig
from eltlab.config.tokenizer_rules import check as check_tokenizer

# What encode has no use for, set by a user; the files of conf/data say some of it for training.
IDLE = {
    "data.flip": "training mirrors images; flips=true encodes each image mirrored as well",
    "data.codebook": "codes over patches of pixels; tokenizer=kmeans has tokenizer.codes",
    "data.patch": "a tokenizer has positions of its own",
    "data.frame_patch": "a tokenizer sees each frame on its own",
    "data.factor": "a tokenizer has positions of its own",
    "data.encoding": "the id of a set that is encoded already",
    "metrics.images": "of encoded sets; the images to encode are those of data.root",
}


def refuse_idle(keys: Iterable[str]) -> None:
    """Raises UserError for a key that encode would pass over."""
    for key in keys:
        if key in IDLE:
            raise UserError(f"{key}: of no use to encode ({IDLE[key]}); leave it out")


def check_encodable(config: EncodeConfig) -> None:
    """Raises UserError for a set that is encoded already and for a tokenizer that cannot be."""
    if config.data.kind != "pixels":
        raise UserError(f"data={config.data.name}: encoded already; choose data=images")
    check_tokenizer(config.tokenizer)


def resolve_encode(config: EncodeConfig) -> EncodeConfig:
    """`resolve` for the keys of encode."""
    choose_extractor(config.metrics, config.data)
    at_least(config, 1, "data.size shard batch metrics.samples")
    at_least(config, 0, "data.workers")
    at_least(config, 2, "data.classes")
    if config.data.channels != 3:
        raise UserError(
            f"data.channels={config.data.channels}: tokenizers see and draw colour; give "
            "data.channels=3, which decodes grey images as grey colours (data=images)"
        )
    one_of(config, "accelerator", ("auto", "cpu", "cuda"))
    check_source(config.data)
    check_metric_places(config.metrics)
    check_samples(config)
    return config
