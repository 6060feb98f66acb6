"""Encodes a set of images or clips with a tokenizer, and measures what the tokenizer loses."""

import math
import sys
from pathlib import Path

from eltlab.common import distributed, ranks
from eltlab.common.torch_device import choose_device
from eltlab.config.schema import EncodeConfig
from eltlab.data.encoded.manifest import SPLITS, Encoding
from eltlab.data.encoded.set_folder import (
    describe_encoding,
    finish_set,
    load_started_codebook,
    start_set,
)
from eltlab.data.encoded.shard_writing import Pace, encode_missing
from eltlab.data.sources import Splits, class_names, load_splits
from eltlab.data.tokenizers.batch_sizes import clips_per_batch, network_batch
from eltlab.data.tokenizers.per_frame import adapt_to_clips
from eltlab.data.tokenizers.tokenizer_files import FrozenTokenizer, build_tokenizer
from eltlab.evaluation.metrics import build_metrics, check_metrics, describe_metrics
from eltlab.evaluation.tokenizer_floor import measure_floor
from eltlab.runs.row_facts import machine_facts, recorded_config
from eltlab.runs.row_files import ROWS, append_rows


def encode(config: EncodeConfig, out: Path) -> None:
    """Writes the shards that the set lacks; the main process then checks the set and writes its row.

    Several ranks share the shards. Raises UserError.
    """
    device = choose_device(config.accelerator)
    distributed.init_process_group(device)
    splits = load_splits(config.data)
    if config.evaluate:
        check_metrics(config, len(splits[0]), 1, device)
    codebook = load_started_codebook(out)
    tokenizer = build_tokenizer(config.tokenizer, splits[0], device.type, codebook)
    images = dict(zip(SPLITS, splits, strict=True))
    keys = ("name", "root", "frames", "stride", "split")
    source = {key: getattr(config.data, key) for key in keys}
    classes = class_names(config.data)
    encoding = describe_encoding(images, classes, tokenizer, source, config.flips, config.shard)
    start_set(out, encoding, tokenizer)
    batch = config.batch or clips_per_batch(network_batch(device), config.data.shape)
    rank, world_size = ranks.rank(), ranks.world_size()
    pace = encode_missing(out, encoding, images, tokenizer, batch, rank, world_size)
    if pace.images:
        print(f"encoded {pace}", file=sys.stderr)
    distributed.barrier()
    if not ranks.is_main_process():
        return
    finish_set(out, encoding, again=config.verify)
    if config.evaluate:
        write_floor(config, out, encoding, splits, tokenizer, pace)


def write_floor(
    config: EncodeConfig,
    out: Path,
    encoding: Encoding,
    splits: Splits,
    tokenizer: FrozenTokenizer,
    pace: Pace,
) -> None:
    """Appends a row of kind tokenizer to the set's folder: the floor for models on the set."""
    train, test = splits
    metrics = build_metrics(config, train, tokenizer.device)
    decoder = adapt_to_clips(tokenizer, config.data.frames)
    row = {
        "kind": "tokenizer",
        "run": out.name,
        "name": tokenizer.name,
        **machine_facts(tokenizer.device),
        "data": config.data.name,
        "tokens": positions_per_example(encoding),
        "images_per_second": pace.images / pace.seconds if pace.images else None,
        "cfg": recorded_config(config),
        **measure_floor(decoder, train, test, config.metrics.samples, metrics),
    }
    append_rows(out / ROWS, [row])
    psnr = "" if row["psnr"] is None else f"PSNR {row['psnr']:.2f} dB, "
    print(f"{tokenizer.name}: {psnr}{describe_metrics(row)}", file=sys.stderr)


def positions_per_example(encoding: Encoding) -> int:
    """The number of ids, or of positions of a latent."""
    if encoding.kind == "tokens":
        return encoding.shape[0]
    *clip, _, height, width = encoding.shape
    return math.prod(clip) * height * width
