"""Encodes a set with a tokenizer and measures what the tokenizer loses."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common import distributed, ranks
from eltlab.config.schema import EncodeConfig
from eltlab.data.encoded.manifest import SPLITS
from eltlab.runs.row_facts import machine_facts, recorded_config
from eltlab.runs.row_files import ROWS, append_rows

if TYPE_CHECKING:
    from eltlab.data.encoded.manifest import Encoding
    from eltlab.data.encoded.shard_writing import Pace
    from eltlab.data.sources import Splits
    from eltlab.data.tokenizers.tokenizer_files import FrozenTokenizer
    from eltlab.evaluation.metrics import Metrics


def encode(config: EncodeConfig, out: Path) -> None:
    """Writes what is missing of the set, checks it and measures what the tokenizer loses."""
    print(f"encode: {config.data.name} by {config.tokenizer.name}", file=sys.stderr, flush=True)

    from eltlab.common.torch_device import choose_device
    from eltlab.data.encoded.set_folder import (
        describe_encoding,
        finish_set,
        load_started_codebook,
        start_set,
    )
    from eltlab.data.encoded.shard_writing import encode_missing
    from eltlab.data.sources import class_names, load_splits
    from eltlab.data.tokenizers.batch_sizes import clips_per_batch, network_batch
    from eltlab.data.tokenizers.tokenizer_files import build_tokenizer
    from eltlab.evaluation.metrics import check_metrics

    device = choose_device(config.accelerator)
    distributed.init_process_group(device)
    splits = load_splits(config.data)
    if config.evaluate:
        check_metrics(config, len(splits[0]), 1, device)
    tokenizer = build_tokenizer(
        config.tokenizer, splits[0], device.type, load_started_codebook(out)
    )
    images = dict(zip(SPLITS, splits, strict=True))
    source = {
        key: getattr(config.data, key) for key in ("name", "root", "frames", "stride", "split")
    }
    classes = class_names(config.data)
    encoding = describe_encoding(images, classes, tokenizer, source, config.flips, config.shard)
    start_set(out, encoding, tokenizer)
    batch = config.batch or clips_per_batch(network_batch(device), config.data.shape)
    share = ranks.rank(), ranks.world_size()
    pace = encode_missing(out, encoding, images, tokenizer, batch, *share)
    if pace.images:
        print(f"encoded {pace}", file=sys.stderr)
    distributed.barrier()
    if not ranks.is_main_process():
        return
    finish_set(out, encoding, again=config.verify)
    if config.evaluate:
        measure(config, out, encoding, splits, tokenizer, pace)


def measure(
    config: EncodeConfig,
    out: Path,
    encoding: "Encoding",
    splits: "Splits",
    tokenizer: "FrozenTokenizer",
    pace: "Pace",
) -> None:
    """One row of kind tokenizer in the folder: what every model on the set is read against."""
    from eltlab.data.tokenizers.per_frame import adapt_to_clips
    from eltlab.evaluation.metrics import build_metrics
    from eltlab.evaluation.tokenizer_floor import floor

    train, test = splits
    wanted = config.metrics.reference
    reference = train if wanted is None else train.subset(wanted)
    metrics: Metrics = build_metrics(config, train, reference, tokenizer.device)
    row: dict[str, Any] = {
        "kind": "tokenizer",
        "run": out.name,
        "name": tokenizer.name,
        **machine_facts(tokenizer.device),
        "data": config.data.name,
        "tokens": tokens_of(encoding),
        "images_per_second": pace.images / pace.seconds if pace.images else None,
        "cfg": recorded_config(config),
        **floor(
            adapt_to_clips(tokenizer, config.data.frames),
            train,
            test,
            config.metrics.samples,
            metrics,
        ),
    }
    append_rows(out / ROWS, [row])
    psnr = "" if row["psnr"] is None else f"PSNR {row['psnr']:.2f} dB, "
    print(f"{tokenizer.name}: {psnr}{metrics.headline(row)}", file=sys.stderr)


def tokens_of(encoding: "Encoding") -> int:
    """Ids, or positions of latents."""
    if encoding.kind == "tokens":
        return encoding.shape[0]
    *clip, _, height, width = encoding.shape
    return math.prod(clip) * height * width
