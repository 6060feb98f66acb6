"""Training steps and sampling passes, taken and timed one at a time, part by part, outside of Lightning."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eltlab.common.seeds import BatchNoise, BatchSlice
from eltlab.common.torch_device import autocast
from eltlab.config.cost.flops import macs_per_pass, network, train_flops_per_image
from eltlab.config.schema import Config, Spent
from eltlab.training.live_memory import LiveMemory
from eltlab.training.module import LoopedModule

PARTS = ("data", "forward", "backward", "optimizer")  # of a training step, in order
Batch = tuple[Tensor, Tensor]


class Step(NamedTuple):
    """What one training step took, and what it was worth: its own depth, where depths are random."""

    parts: dict[str, float]  # seconds of each of PARTS
    flops: float
    model_flops: float  # without what was recomputed

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


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
    """One configuration in training, whose steps are taken one at a time, as `fit` takes them on the
    first of its devices, without the others.

    Args:
        batches: its shares of the pieces of batches.
    """

    def __init__(
        self, config: Config, device: torch.device, precision: str, batches: Iterable[Batch]
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.recompute = config.trainer.recompute
        self.batches = iter(batches)
        self.batch_slice = BatchSlice(0, config.world, 0, config.trainer.accumulate)
        self.module = LoopedModule(config, batch_slice=self.batch_slice).to(device)
        stack: Any = self.module.backbone.stack
        stack.recompute = self.recompute
        if config.trainer.compile:
            stack.compile_blocks()
        self.optimizer = self.module.configure_optimizers()

    def step(self) -> Step:
        """Takes one step."""
        module, clock = self.module, Clock(self.device)
        exits = module.supervision.exits(module.step)
        for piece in range(self.batch_slice.micro_batches):
            batch = next(self.batches)
            clock.mark()
            with autocast(self.device, self.precision):
                loss = module.training_step(batch, piece) / self.batch_slice.micro_batches
            clock.mark()
            if piece == 0:  # here, as Lightning does: the forward holds the old gradients
                self.optimizer.zero_grad()
            loss.backward()
            clock.mark()
        clip = partial(module.configure_gradient_clipping, self.optimizer)
        module.optimizer_step(0, 0, self.optimizer, clip)
        clock.mark()
        *passes, optimizer = clock.seconds()
        taken = [*(sum(passes[n::3]) for n in range(3)), optimizer]
        parts = dict(zip(PARTS, taken, strict=True))
        return Step(parts, *(self.flops(exits, flag) for flag in (self.recompute, False)))

    def flops(self, exits: tuple[int, ...], recompute: bool) -> float:
        """FLOPs of a step that reads these exits, on this device."""
        spent = Spent({max(exits): 1.0}, len(set(exits)))
        each = train_flops_per_image(network(self.config), spent, recompute)
        return each * self.config.batch_size / self.config.world

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
        """Takes a step or two; the most that its tensors held at a time, in its deepest steps."""
        if not self.optimizer.state:
            self.step()  # which makes the optimizer's moments, static bytes from then on
        deepest = self.deepest_step()
        if self.device.type == "cuda":
            others = torch.cuda.memory_allocated() - self.static_bytes()
            torch.cuda.reset_peak_memory_stats()
            self.module.step = deepest
            self.step()
            return torch.cuda.max_memory_allocated() - others
        with LiveMemory() as live:
            self.step()  # from here on the gradients are among what is followed
            self.module.step = deepest
            live.reset_peak()
            self.step()
        return self.static_bytes() - self.gradient_bytes() + live.peak

    def deepest_step(self) -> int:
        """The next step that runs as many loops as any does."""
        most = max(self.config.supervision.spent(self.config.loops).depths)
        steps = itertools.count(self.module.step)
        return next(n for n in steps if max(self.module.supervision.exits(n)) == most)


def synthetic(config: Config, device: torch.device) -> Iterator[Batch]:
    """The same random batch for ever, of the configuration's shapes: no data are needed."""
    data, count = config.data, config.micro_batch_size
    labels = torch.randint(data.classes, (count,), device=device)
    if config.objective.INPUTS == "tokens":
        x = torch.randint(data.codebook, (count, data.tokens), device=device)
    else:
        x = torch.randn(count, *data.shape, device=device)
    return itertools.repeat((x, labels))


@torch.inference_mode()
def pass_seconds(arm: Arm, batch: Batch) -> float:
    """Seconds of one network evaluation of the average at the trained loop count."""
    x, labels_B = batch
    noise = BatchNoise(torch.Generator(arm.device).manual_seed(0), len(x))
    inputs, _ = arm.module.objective.corrupt(x, noise)
    clock = Clock(arm.device)
    with autocast(arm.device, arm.precision):
        arm.module.ema(*inputs, labels_B=labels_B, exits=(arm.config.loops,))
    clock.mark()
    return clock.seconds()[0]


def interleaved(
    takers: Sequence[Callable[[], Any]],
    repeats: int,
    warmup: int,
    turned: Callable[[int], None] = lambda turn: None,
) -> list[list[Any]]:
    """What each taker gave, turn by turn, without the warm-up; turned is told how many are over.

    Every other turn runs backwards, so that a steady drift of the machine cancels.
    """
    taken: list[list[Any]] = [[] for _ in takers]
    for turn in range(warmup + repeats):
        order = range(len(takers)) if turn % 2 == 0 else reversed(range(len(takers)))
        for n in order:
            taken[n].append(takers[n]())
        turned(turn + 1)
    return [values[warmup:] for values in taken]


def rates(
    configs: list[Config], kind: str, precision: str, repeats: int = 4
) -> list[tuple[float, float]]:
    """FLOPs a second of training steps and of sampling passes of each, all in turns."""
    device = torch.device(kind)
    arms = [Arm(config, device, precision, synthetic(config, device)) for config in configs]
    steps = interleaved([arm.step for arm in arms], repeats, 1)
    passes = [partial(pass_seconds, arm, next(arm.batches)) for arm in arms]
    found = []
    for arm, trained, drawn in zip(arms, steps, interleaved(passes, repeats, 1), strict=True):
        train = sum(step.flops for step in trained) / sum(step.seconds for step in trained)
        macs = macs_per_pass(network(arm.config), arm.config.loops)
        found.append((train, 2 * macs * arm.config.micro_batch_size / statistics.median(drawn)))
    return found


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOPs a second of one large matrix product: what utilisation is measured against."""
    size = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    clock = Clock(device)
    torch.mm(matrix, matrix)
    clock.mark()
    return 2 * size**3 / clock.seconds()[0]
