"""Measures how the memory format and the size of a batch change the speed of Inception on a CPU.

    python benchmarks/inception.py [ROUNDS]

Every round times 25 images with each format and size, so that a busy machine slows all of them. Prints the
medians of the CPU time per image, relative to contiguous batches of 25.
"""

import sys
import time
from collections import defaultdict
from statistics import median

import torch

from eltlab.evaluation.inception import Inception, load_inception

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
BATCHES = (1, 4, 8, 25)
IMAGES = 25
BASE = ("contiguous", IMAGES)


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 5
    torch.set_num_threads(1)
    inception = load_inception(None)
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, memory_format in FORMATS.items():
            inception.to(memory_format=memory_format)
            for batch in BATCHES:
                seconds[name, batch].append(time_images(inception, images, batch))
    base = median(seconds[BASE])
    for (name, batch), values in seconds.items():
        print(f"{name:>13}, batches of {batch:2}: {median(values) / base:.2f}")


def time_images(inception: Inception, images: torch.Tensor, batch: int) -> float:
    """Seconds of CPU time for all images."""
    with torch.inference_mode():
        inception(images[:batch])  # the first call prepares kernels
        start = time.process_time()
        for part in images.split(batch):
            inception(part)
        return time.process_time() - start


if __name__ == "__main__":
    main(sys.argv[1:])
