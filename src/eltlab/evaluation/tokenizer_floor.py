"""What a tokenizer alone loses: the floor that every model on its tokens or latents is read against."""

import json
import math
from pathlib import Path
from typing import Any

from eltlab.common.cache import cache_dir, make_once
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.patch_codebook import Decoder, psnr, reconstruct
from eltlab.evaluation.metrics import Metrics
from eltlab.evaluation.protocol import protocol_id

PSNR_IMAGES = 2000  # more tell no more


def floor(
    tokenizer: Decoder, train: Images, test: Images, samples: int, metrics: Metrics
) -> dict[str, Any]:
    """Columns of a row of kind tokenizer, measured once for a protocol and then read from the cache.

    PSNR in dB on as many images of the test split as samples are drawn, at most PSNR_IMAGES; the
    metrics of as many reconstructed training images, because a distance depends on their number.
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
        # JSON has no infinity: a codebook that loses nothing has no PSNR.
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
