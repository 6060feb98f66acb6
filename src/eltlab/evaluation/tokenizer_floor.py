"""What a tokenizer alone loses: a floor under the metrics of every model on its tokens or latents."""

import json
import math
from pathlib import Path
from typing import Any

from eltlab.common.disk_cache import cache_dir, make_once
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.tokenizer import Tokenizer, psnr, reconstruct
from eltlab.evaluation.metrics import Metrics
from eltlab.evaluation.protocol import protocol_id

PSNR_IMAGES = 2000  # enough for two decimals


def measure_floor(
    tokenizer: Tokenizer, train: Images, test: Images, samples: int, metrics: Metrics
) -> dict[str, Any]:
    """Columns of a row of kind tokenizer, measured once per protocol and then read from the cache.

    The metrics compare `samples` reconstructed training images with the reference. A model is measured with
    as many samples, because distances depend on the number. PSNR, in dB: of at most PSNR_IMAGES test images.
    """
    images = train.subset(min(samples, len(train)))
    held_out = test.subset(min(PSNR_IMAGES, samples, len(test)))
    protocol = {
        "tokenizer": tokenizer.hash,
        "extractor": metrics.extractor,
        "reference": metrics.reference,
        "images": f"{images.name}-{images.hash}",
        "psnr": f"{held_out.name}-{held_out.hash}",
    }

    def measure(path: Path) -> None:
        decibels = psnr(held_out.images, reconstruct(tokenizer, held_out.images))
        # A lossless codebook has infinite PSNR, which JSON cannot hold.
        values = {"psnr": decibels if math.isfinite(decibels) else None}
        rebuilt = reconstruct(tokenizer, images.images)
        path.write_text(json.dumps(values | metrics.measure(rebuilt, images.labels)))

    path = cache_dir() / "floors" / f"{protocol_id(protocol)}.json"
    make_once(path, measure)
    return {
        "samples": len(images),
        "protocol": protocol_id(protocol),
        "protocol_text": json.dumps(protocol, sort_keys=True),
        **json.loads(path.read_text()),
    }
