"""What an ILSD step costs beside a vanilla looped step of the same L (promised: at most 1.15×).

    python benchmarks/ilsd_overhead.py [model=elt_b loops=4 batch_size=8 …]

Takes fit's overrides. Whole training steps (forward, backward, clip, optimizer, EMA) of both arms
are timed in turn, so that drift of the machine cancels; printed is the ratio of medians with the
quartiles of the paired ratios.
"""

import statistics
import sys
import time

import torch
from lightning import Trainer

from eltlab.build import build_data, choose_device
from eltlab.compose import compose
from eltlab.config import Config
from eltlab.machine import device_name
from eltlab.training.callbacks import quiet_lightning
from eltlab.training.ema import ema_update
from eltlab.training.module import LoopedModule

REPEATS, WARM_UP = 12, 2


class Steps:
    """A training run whose steps are taken one at a time."""

    def __init__(self, config: Config) -> None:
        self.module = LoopedModule(config)
        data = build_data(config)
        device = choose_device("cpu")
        self.batches = iter(data.batches(config, 0, device))
        self.optimizer = self.module.configure_optimizers()
        self.module.__dict__["_trainer"] = Trainer(logger=False, enable_checkpointing=False)

    def seconds(self) -> float:
        started = time.perf_counter()
        loss = self.module.training_step(next(self.batches), 0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.module.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()
        ema_update(self.module.ema, self.module.backbone, 0.999)
        self.module.step += 1
        return time.perf_counter() - started


def main(overrides: list[str]) -> None:
    quiet_lightning()
    asked = ["model=elt_b", "loops=4", "batch_size=8", *overrides]
    arms = {name: Steps(compose([*asked, f"supervision={name}"])) for name in ("final", "ilsd")}
    for _ in range(WARM_UP):
        for arm in arms.values():
            arm.seconds()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(REPEATS):
        for name in sorted(arms, reverse=bool(repeat % 2)):
            times[name].append(arms[name].seconds())
    ratios = [i / f for i, f in zip(times["ilsd"], times["final"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    ratio = statistics.median(times["ilsd"]) / statistics.median(times["final"])
    print(f"{' '.join(asked)} on {device_name(torch.device('cpu'))}, {REPEATS} interleaved steps")
    print(f"ILSD / vanilla step: {ratio:.3f} (paired ratios, quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
