"""Times training steps by phase, network passes and matrix products, one at a time, without Lightning."""

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
from eltlab.config.cost.flops import macs_per_pass, train_flops_per_image
from eltlab.config.network_shape import network
from eltlab.config.schema import Config, Spent
from eltlab.training.live_memory import LiveMemory
from eltlab.training.looped_module import LoopedModule

PHASES = ("data", "forward", "backward", "optimizer")  # of a training step, in order
Batch = tuple[Tensor, Tensor]


class TimedStep(NamedTuple):
    """The time and the FLOPs of one training step, at the depth of that step, which may be random."""

    phases: dict[str, float]  # seconds of each of PHASES
    flops: float
    model_flops: float  # without recomputation

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


class Clock:
    """Marks times on the device's own timeline. On CUDA these are events, so marking does not wait."""

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
        """The times between consecutive marks. Waits for the device."""
        pairs = list(itertools.pairwise(self.marks))
        if not self.cuda:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class TimedModel:
    """A model whose training steps are taken one at a time, as the main process of `fit` takes them."""

    def __init__(
        self, config: Config, device: torch.device, precision: str, batches: Iterable[Batch]
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.batches = iter(batches)
        batch_slice = BatchSlice(0, config.world, 0, config.trainer.accumulate)
        self.module = LoopedModule(config, batch_slice=batch_slice).to(device)
        self.optimizer = self.module.configure_optimizers()
        self.is_vanilla = config.supervision.name == "final"

    def step(self) -> TimedStep:
        """Takes and times one training step."""
        module, clock = self.module, Clock(self.device)
        exits, micro_batches = module.supervision.exits(module.step), self.config.trainer.accumulate
        for n in range(micro_batches):
            batch = next(self.batches)
            clock.mark()
            with autocast(self.device, self.precision):
                loss = module.training_step(batch, n) / micro_batches
            clock.mark()
            if n == 0:  # as late as in Lightning: the old gradients are held during the forward pass
                self.optimizer.zero_grad()
            loss.backward()
            clock.mark()
        clip = partial(module.configure_gradient_clipping, self.optimizer)
        module.optimizer_step(0, 0, self.optimizer, clip)
        clock.mark()
        *passes, optimizer = clock.seconds()
        phases = [*(sum(passes[n::3]) for n in range(3)), optimizer]
        return TimedStep(
            dict(zip(PHASES, phases, strict=True)),
            self.flops(exits, self.config.trainer.recompute),
            self.flops(exits, recompute=False),
        )

    def flops(self, exits: tuple[int, ...], recompute: bool) -> float:
        """FLOPs per device of a step that reads these exits."""
        spent = Spent({max(exits): 1.0}, len(set(exits)))
        per_image = train_flops_per_image(network(self.config), spent, recompute)
        return per_image * self.config.batch_size / self.config.world

    @torch.inference_mode()
    def time_pass(self, batch: Batch) -> float:
        """Seconds of one pass of the averaged weights at the trained loop count."""
        x, labels_B = batch
        noise = BatchNoise(torch.Generator(self.device).manual_seed(0), len(x))
        inputs, _ = self.module.objective.corrupt(x, noise)
        clock = Clock(self.device)
        with autocast(self.device, self.precision):
            self.module.average(*inputs, labels_B=labels_B, exits=(self.config.loops,))
        clock.mark()
        return clock.seconds()[0]

    def static_bytes(self) -> int:
        """Bytes held between steps: weights, average, gradients and optimizer state."""
        parameters = list(self.module.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        tensors = [*parameters, *self.module.buffers(), *gradients, *moments]
        return sum(tensor.nbytes for tensor in tensors)

    def peak_bytes(self) -> int:
        """The most memory in use during a step of the largest depth. Takes two or three steps."""
        if not self.optimizer.state:
            self.step()  # allocates the moments, which are static from then on
        deepest = self.next_deepest_step()
        if self.device.type == "cuda":
            other_bytes = torch.cuda.memory_allocated() - self.static_bytes()
            torch.cuda.reset_peak_memory_stats()
            self.module.step = deepest
            self.step()
            return torch.cuda.max_memory_allocated() - other_bytes
        self.optimizer.zero_grad()  # LiveMemory counts the gradients of its own steps
        static_bytes = self.static_bytes()
        with LiveMemory() as live:
            self.step()
            self.module.step = deepest
            live.reset_peak()
            self.step()
        return static_bytes + live.peak

    def next_deepest_step(self) -> int:
        """The next step that runs the largest loop count of any step."""
        largest = max(self.config.supervision.spent(self.config.loops).depths)
        steps = itertools.count(self.module.step)
        return next(n for n in steps if max(self.module.supervision.exits(n)) == largest)


def synthetic_batches(config: Config, device: torch.device) -> Iterator[Batch]:
    """One random micro-batch of the configuration's shapes, repeated forever."""
    data, count = config.data, config.micro_batch_size
    labels = torch.randint(data.classes, (count,), device=device)
    if config.objective.INPUTS == "tokens":
        x = torch.randint(data.codebook, (count, data.tokens), device=device)
    else:
        x = torch.randn(count, *data.shape, device=device)
    return itertools.repeat((x, labels))


def interleave(
    actions: Sequence[Callable[[], Any]],
    repeats: int,
    warmup: int,
    on_round: Callable[[int], None] = lambda rounds: None,
) -> list[list[Any]]:
    """Calls every action once per round. Returns the results of each action without the warm-up rounds.
    on_round: called after each round with the number of rounds done."""
    results: list[list[Any]] = [[] for _ in actions]
    for n in range(warmup + repeats):
        pairs = list(zip(actions, results, strict=True))
        # Every second round is reversed, so that a steady drift of the machine's speed cancels.
        for action, found in pairs if n % 2 == 0 else reversed(pairs):
            found.append(action())
        on_round(n + 1)
    return [found[warmup:] for found in results]


def measure_rates(
    configs: list[Config], device_type: str, precision: str, repeats: int = 4
) -> list[tuple[float, float]]:
    """FLOPs per second of training steps and of sampling passes of each configuration, interleaved."""
    device = torch.device(device_type)
    models = [TimedModel(c, device, precision, synthetic_batches(c, device)) for c in configs]
    steps = interleave([model.step for model in models], repeats, 1)
    passes = [partial(model.time_pass, next(model.batches)) for model in models]
    seconds = interleave(passes, repeats, 1)
    rates = []
    for config, trained, sampled in zip(configs, steps, seconds, strict=True):
        train = sum(step.flops for step in trained) / sum(step.seconds for step in trained)
        flops = 2 * macs_per_pass(network(config), config.loops) * config.micro_batch_size
        rates.append((train, flops / statistics.median(sampled)))
    return rates


def measure_matmul_rate(device: torch.device, precision: str) -> float:
    """FLOPs per second of one large matrix product, the reference for utilisation."""
    size = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    clock = Clock(device)
    torch.mm(matrix, matrix)
    clock.mark()
    return 2 * size**3 / clock.seconds()[0]
