"""Parquet files of images of noise, in the layout of the Hugging Face hub."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from support.image_files import encoded, noise

NAMES = ["cat", "dog", "owl"]
# What the library datasets (2 and later) writes into the schema for Image and ClassLabel columns.
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
}


def write(
    path: Path,
    labels: list[int],
    first: int = 0,
    features: dict | None = FEATURES,
    columns: tuple[str, str] = ("image", "label"),
    **options: object,
) -> Path:
    """Writes images of noise with these labels; first: seed of the first image."""
    images = [{"bytes": encoded(noise(first + i, 10, 8)), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({columns[0]: images, columns[1]: pa.array(labels, pa.int64())})
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **{"row_group_size": 4, **options})
    return path


TRAIN = [i % 3 for i in range(14)]
