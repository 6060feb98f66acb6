"""Measures the Fréchet distance between the test and the training split of a data set: the floor of FID.

    python benchmarks/split_distance.py OUT.jsonl data=images data.root=cifar10_jpeg data.size=32

Mean and covariance of all images of both splits are streamed and saved every 2,000 images, so the same
command continues after a stop. Writes one row with the distance and what it was measured on.
"""

import json
from pathlib import Path

from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.common.files import write_atomic
from eltlab.common.torch_device import choose_device
from eltlab.data.image_sources import load_splits
from eltlab.evaluation.distances import frechet
from eltlab.evaluation.inception import inception_extractor, load_inception
from eltlab.evaluation.streamed_statistics import streamed_statistics
from eltlab.runs.compose_config import compose
from eltlab.runs.row_files import machine_facts, recorded_config


def measure(overrides: list[str]) -> dict[str, object]:
    """The row of the configuration's data. Raises UserError."""
    config = compose([*overrides, "objective=diffusion", "metrics.extractor=inception"])
    device = choose_device(config.trainer.accelerator)
    extractor = inception_extractor(load_inception(config.metrics.weights), device)
    splits = load_splits(config.data)
    train, test = (streamed_statistics(images, extractor) for images in splits)
    return {
        "kind": "split_distance",
        **machine_facts(device),
        "data": config.data.name,
        "fid": frechet(test, train),
        "extractor": extractor.name,
        "reference": f"{splits[0].name}-{len(splits[0])}-{splits[0].origin}",
        "samples": f"{splits[1].name}-{len(splits[1])}-{splits[1].origin}",
        "cfg": recorded_config(config),
    }


def main(arguments: list[str]) -> None:
    if not arguments or "=" in arguments[0]:
        raise UserError("give the file to write first: python benchmarks/split_distance.py OUT.jsonl data=…")
    out, *overrides = arguments
    row = measure(overrides)
    write_atomic(Path(out), json.dumps(row) + "\n")
    print(f"fid {row['fid']:.3f}: {row['samples']} to {row['reference']}")


if __name__ == "__main__":
    run_command(main, lambda arguments: __doc__, "the same command continues")
