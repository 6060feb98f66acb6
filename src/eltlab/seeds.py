"""All randomness is a function of (seed, purpose, step or sample index).

Nothing carries a random state from one step to the next, so a resumed run draws what an
uninterrupted one draws, and evaluation cannot disturb training (DESIGN decision 2).
"""

import hashlib

import torch
from torch import Tensor


def fold(*parts: int | str) -> int:
    """A 63-bit seed out of numbers and words (without "/"); another part, an unrelated seed."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(fold(*parts))


class SampleNoise:
    """Noise keyed by (seed, sample index): sample i is the same in any batch, on any rank.

    One generator a sample, read in the order of the sampling steps. Drawn on the CPU, so that a
    seed means the same noise on every device.
    """

    def __init__(self, seed: int, indices: list[int], device: torch.device | str = "cpu") -> None:
        self.generators = [generator(seed, "sample", index) for index in indices]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """[samples, *shape], standard normal."""
        draws = [torch.randn(shape, generator=g) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """[samples, *shape], uniform on [0, 1)."""
        draws = [torch.rand(shape, generator=g) for g in self.generators]
        return torch.stack(draws).to(self.device)
