"""python -m eltlab.encode data.root=IMAGES tokenizer=taesd out=DIR: images to latents or tokens, once."""

import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from eltlab import devices, results
from eltlab.cli import options, run_verb
from eltlab.compose import compose_encode, compose_node
from eltlab.config import EncodeConfig
from eltlab.data.folders import listed_once
from eltlab.data.manifest import SPLITS

if TYPE_CHECKING:
    from eltlab.data.encoding import Pace
    from eltlab.data.manifest import Encoding
    from eltlab.data.sources import Splits
    from eltlab.data.tokenizers import Tokenizer
    from eltlab.metrics.measure import Metrics


def usage() -> str:
    keys = OmegaConf.to_yaml(compose_node([], "encode", EncodeConfig())).splitlines()
    lines = "\n".join(f"  {line}" for line in keys)
    return (
        f"{__doc__}\n\n"
        "The same command again goes on where it was stopped. Under torchrun the processes share the\n"
        "shards. DIR then trains: python -m eltlab.fit data=latents data.root=DIR objective=diffusion\n\n"
        f"choices:\n{options('encode')}\n\nkeys and their defaults (write section.key=value):\n{lines}\n\n"
        "examples:\n"
        "  python -m eltlab.encode data.root=photos.zip data.size=128 tokenizer=taesd out=photos_latents\n"
        "  python -m eltlab.encode data.root=photos.zip data.size=128 tokenizer=kmeans out=photos_tokens\n"
        "  torchrun --nproc-per-node 8 -m eltlab.encode data.root=ILSVRC data.size=256 tokenizer=sd_vae …"
    )


def main(overrides: list[str]) -> None:
    with listed_once():
        config = compose_encode(overrides)
        out = Path(config.out).expanduser().resolve()
        encode(config, out)
    print(f"encoded: {config.out}")


def encode(config: EncodeConfig, out: Path) -> None:
    """Writes what is missing of the set, checks it and measures what the tokenizer loses."""
    print(f"encode: {config.data.name} by {config.tokenizer.name}", file=sys.stderr, flush=True)

    from eltlab.build import choose_device
    from eltlab.data.encoding import begin, describe, encode_missing, finish, fitted_before
    from eltlab.data.perframe import batch_of
    from eltlab.data.sources import load_splits, names_of_classes
    from eltlab.data.tokenizer import clips_at_once
    from eltlab.data.tokenizers import build_tokenizer
    from eltlab.metrics.measure import check_metrics

    device = choose_device(config.accelerator)
    devices.join(device)
    splits = load_splits(config.data)
    if config.evaluate:
        check_metrics(config, len(splits[0]), 1, device)
    tokenizer = build_tokenizer(config.tokenizer, splits[0], device.type, fitted_before(out))
    images = dict(zip(SPLITS, splits, strict=True))
    source = {
        key: getattr(config.data, key) for key in ("name", "root", "frames", "stride", "split")
    }
    classes = names_of_classes(config.data)
    encoding = describe(images, classes, tokenizer, source, config.flips, config.shard)
    begin(out, encoding, tokenizer)
    batch = config.batch or clips_at_once(batch_of(device), config.data.shape)
    share = devices.rank(), devices.world()
    pace = encode_missing(out, encoding, images, tokenizer, batch, *share)
    if pace.images:
        print(f"encoded {pace}", file=sys.stderr)
    devices.wait()
    if not devices.first():
        return
    finish(out, encoding, again=config.verify)
    if config.evaluate:
        measure(config, out, encoding, splits, tokenizer, pace)


def measure(
    config: EncodeConfig,
    out: Path,
    encoding: "Encoding",
    splits: "Splits",
    tokenizer: "Tokenizer",
    pace: "Pace",
) -> None:
    """One row of kind tokenizer in the folder: what every model on the set is read against."""
    from eltlab.data.perframe import over
    from eltlab.machine import code_version, device_name
    from eltlab.metrics.floor import floor
    from eltlab.metrics.measure import build_metrics

    train, test = splits
    wanted = config.metrics.reference
    reference = train if wanted is None else train.subset(wanted)
    metrics: Metrics = build_metrics(config, train, reference, tokenizer.device)
    row: dict[str, Any] = {
        "kind": "tokenizer",
        "run": out.name,
        "name": tokenizer.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "device": device_name(tokenizer.device),
        "data": config.data.name,
        "tokens": tokens_of(encoding),
        "images_per_second": pace.images / pace.seconds if pace.images else None,
        "cfg": results.recorded(config),
        **floor(over(tokenizer, config.data.frames), train, test, config.metrics.samples, metrics),
    }
    results.append_rows(out / results.ROWS, [row])
    psnr = "" if row["psnr"] is None else f"PSNR {row['psnr']:.2f} dB, "
    print(f"{tokenizer.name}: {psnr}{metrics.headline(row)}", file=sys.stderr)


def tokens_of(encoding: "Encoding") -> int:
    """Ids, or positions of latents."""
    if encoding.kind == "tokens":
        return encoding.shape[0]
    *clip, _, height, width = encoding.shape
    return math.prod(clip) * height * width


if __name__ == "__main__":
    run_verb(main, usage, "the same command writes the shards that are missing")
