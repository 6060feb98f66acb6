"""Training steps and sampling passes, taken and timed one at a time, part by part, outside of Lightning."""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from eltlab import compute
from eltlab.config import Config
from eltlab.live import LiveBytes
from eltlab.training.ema import ema_decay, ema_update
from eltlab.training.module import LoopedModule, learning_rate

PARTS = ("data", "forward", "backward", "optimizer")  # of a training step, in order
Batch = tuple[Tensor, Tensor]


class Clock:
    """Marks on the device's own timeline: events on CUDA, so that nothing waits in between."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The time between each two marks. Waits for the device."""
        pairs = list(itertools.pairwise(self.marks))
        if not self.cuda:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class Arm:
    """One configuration in training, whose steps are taken one at a time, as `fit` takes them."""

    def __init__(
        self, config: Config, device: torch.device, precision: str, batches: Iterable[Batch]
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.batches = iter(batches)
        self.module = LoopedModule(config).to(device)
        stack: Any = self.module.backbone.stack
        stack.recompute = config.trainer.recompute
        if config.trainer.compile:
            stack.compile_blocks()
        self.optimizer = self.module.configure_optimizers()

    def autocast(self) -> Any:
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def step(self) -> dict[str, float]:
        """Takes one step; the seconds of its PARTS."""
        module, clock = self.module, Clock(self.device)
        batch = next(self.batches)
        clock.mark()
        with self.autocast():
            loss = module.training_step(batch, 0)
        clock.mark()
        self.optimizer.zero_grad()  # here, as Lightning does: the forward holds the old gradients
        loss.backward()
        clock.mark()
        module.configure_gradient_clipping(self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, module.step)
        self.optimizer.step()
        ema_update(module.ema, module.backbone, ema_decay(self.config.ema.decay, module.step))
        clock.mark()
        module.step += 1
        return dict(zip(PARTS, clock.seconds(), strict=True))

    def gradient_bytes(self) -> int:
        gradients = (parameter.grad for parameter in self.module.backbone.parameters())
        return sum(gradient.nbytes for gradient in gradients if gradient is not None)

    def static_bytes(self) -> int:
        """What its tensors hold between steps: weights, gradients, optimizer, average."""
        tensors = [
            *self.module.backbone.parameters(),
            *(t for state in self.optimizer.state.values() for t in state.values()),
            *self.module.ema.parameters(),
            *self.module.buffers(),
        ]
        return self.gradient_bytes() + sum(tensor.nbytes for tensor in tensors)

    def peak_bytes(self) -> int:
        """Takes a step or two; the most that its tensors held at a time."""
        if self.device.type == "cuda":
            others = torch.cuda.memory_allocated() - self.static_bytes()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() - others
        with LiveBytes() as live:
            self.step()  # from here on the gradients are among what is followed
            live.restart()
            self.step()
        return self.static_bytes() - self.gradient_bytes() + live.peak


def synthetic(config: Config, device: torch.device) -> Iterator[Batch]:
    """The same random batch for ever, of the configuration's shapes: no data are needed."""
    data, count = config.data, config.batch_size
    labels = torch.randint(data.classes, (count,), device=device)
    if config.objective.INPUTS == "tokens":
        x = torch.randint(data.codebook, (count, data.tokens), device=device)
    else:
        x = torch.randn(count, data.channels, data.size, data.size, device=device)
    return itertools.repeat((x, labels))


@torch.inference_mode()
def pass_seconds(arm: Arm, batch: Batch) -> float:
    """Seconds of one network evaluation of the average at the trained loop count."""
    x, labels_B = batch
    inputs, _ = arm.module.objective.corrupt(x, torch.Generator(arm.device).manual_seed(0))
    clock = Clock(arm.device)
    with arm.autocast():
        arm.module.ema(*inputs, labels_B=labels_B, exits=(arm.config.loops,))
    clock.mark()
    return clock.seconds()[0]


def rates(config: Config, kind: str, precision: str, repeats: int = 3) -> tuple[float, float]:
    """FLOPs a second of training steps and of sampling passes: medians after one of each."""
    device = torch.device(kind)
    batches = synthetic(config, device)
    arm = Arm(config, device, precision, batches)
    steps = [sum(arm.step().values()) for _ in range(1 + repeats)][1:]
    passes = [pass_seconds(arm, next(batches)) for _ in range(1 + repeats)][1:]
    images = config.batch_size
    macs = compute.macs_per_pass(compute.network(config), config.loops)
    train = compute.train_flops(config) * images / statistics.median(steps)
    return train, 2 * macs * images / statistics.median(passes)


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOPs a second of one large matrix product: what utilisation is measured against."""
    size = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    clock = Clock(device)
    torch.mm(matrix, matrix)
    clock.mark()
    return 2 * size**3 / clock.seconds()[0]
