"""Encodes a set of images or clips with a tokenizer, and measures what the tokenizer loses."""

import math
import sys
from pathlib import Path

from eltlab.common import collectives, ranks
from eltlab.common.torch_device import choose_device
from eltlab.config.schema import EncodeConfig
from eltlab.data.encoded.manifest import SPLITS
from eltlab.data.encoded.set_folder import describe_encoding, finish_set, load_started_codebook, start_set
from eltlab.data.encoded.shard_writing import encode_missing
from eltlab.data.image_sources import class_names, load_splits
from eltlab.data.tokenizers.tokenizer import adapt_to_clips, clips_per_batch, network_batch
from eltlab.data.tokenizers.tokenizer_files import build_tokenizer
from eltlab.evaluation.metrics import build_metrics, check_metrics, describe_metrics
from eltlab.evaluation.tokenizer_floor import measure_floor
from eltlab.runs.row_files import ROWS, append_rows, machine_facts, recorded_config


def encode(config: EncodeConfig, out: Path) -> None:
    """Writes the missing shards of a set, divided among the ranks; the main process then checks the set
    and writes its row. Raises UserError."""
    device = choose_device(config.accelerator)
    collectives.init_process_group(device)
    train, test = load_splits(config.data)
    if config.evaluate:
        check_metrics(config, train, test, 1, device)
    tokenizer = build_tokenizer(config.tokenizer, train, device.type, load_started_codebook(out))
    images = dict(zip(SPLITS, (train, test), strict=True))
    keys = ("name", "root", "frames", "stride", "split")
    source = {key: getattr(config.data, key) for key in keys}
    classes = class_names(config.data)
    encoding = describe_encoding(images, classes, tokenizer, source, config.flips, config.shard)
    start_set(out, encoding, tokenizer)
    batch = config.batch or clips_per_batch(network_batch(device), config.data.shape)
    pace = encode_missing(out, encoding, images, tokenizer, batch)
    if pace.images:
        print(f"encoded {pace}", file=sys.stderr)
    collectives.barrier()
    if not ranks.is_main_process():
        return
    finish_set(out, encoding, again=config.verify)
    if not config.evaluate:
        return
    # The row of the set: what the tokenizer alone loses.
    metrics = build_metrics(config, train, test, tokenizer.device)
    decoder, shape = adapt_to_clips(tokenizer, config.data.frames), encoding.shape
    row = {
        "kind": "tokenizer",
        "run": out.name,
        "name": tokenizer.name,
        **machine_facts(tokenizer.device),
        "data": config.data.name,
        "split": config.metrics.split,
        # The number of ids [tokens], or of positions of a latent [frames, channels, height, width].
        "tokens": shape[0] if encoding.kind == "tokens" else math.prod(shape) // shape[-3],
        "images_per_second": pace.images / pace.seconds if pace.images else None,
        "cfg": recorded_config(config),
        **measure_floor(decoder, train, test, config.metrics.samples, metrics),
    }
    append_rows(out / ROWS, [row])
    psnr = "" if row["psnr"] is None else f"PSNR {row['psnr']:.2f} dB, "
    print(f"{tokenizer.name}: {psnr}{describe_metrics(row)}", file=sys.stderr)
