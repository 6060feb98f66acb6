"""AnytimeSampler: samples images or clips from the averaged weights of a run, at any loop count."""

from collections import defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eltlab.common import collectives
from eltlab.common.errors import UserError
from eltlab.common.progress import Bar
from eltlab.common.seeds import SampleNoise
from eltlab.common.text import example_unit
from eltlab.common.torch_device import autocast, choose_precision
from eltlab.config.depth_distribution import DepthDistribution
from eltlab.config.sampling_schedules import LoopSchedule, guidance_scale, loop_schedule
from eltlab.config.schema import Config, SamplerConfig
from eltlab.data.images.image_set import to_uint8
from eltlab.data.tokenizers.tokenizer import RECONSTRUCTED, Tokenizer, clips_per_batch
from eltlab.generation.guidance import guide
from eltlab.generation.objective import build_objective


class SampleBatch(NamedTuple):
    """Samples, and the loops that they took."""

    images: Tensor  # uint8 [N, C, H, W], or clips [N, F, C, H, W]
    depths: list[DepthDistribution]  # at each step; halting runs fewer loops than requested
    updates: list[list[float]]  # of each loop in the first pass of each step, if tracked


class AnytimeSampler:
    """A backbone with its objective, sampler and tokenizer.

    Args:
        backbone: the averaged network, in evaluation mode, on its device.
        config: of the run. Its sampler section has the defaults of every call.
        tokenizer: decodes tokens or latents to images; None if the model samples pixels.
    """

    def __init__(self, backbone: nn.Module, config: Config, tokenizer: Tokenizer | None) -> None:
        self.backbone, self.config = backbone, config
        self.objective = build_objective(config)
        self.device = next(backbone.parameters()).device
        self.tokenizer = None if tokenizer is None else tokenizer.to(self.device)
        self.precision = choose_precision(config.trainer.precision, self.device)

    def sample(
        self,
        labels: Tensor | list[int],
        loops: LoopSchedule | None = None,
        steps: int | None = None,
        seed: int = 0,
        indices: list[int] | None = None,
        guidance: float | None = None,
        halting: float | None = None,
    ) -> Tensor:
        """Samples one image or clip per label: uint8 [N, C, H, W] or [N, F, C, H, W].

        Args:
            labels: class of each image. The null label, data.classes, samples without a class.
            loops: a loop count, a ramp such as "4to1", or one count per step; None: the run's.
            steps, guidance, halting: replace those of the run's sampler.
            seed, indices: the noise of image i is a function of (seed, indices[i]); None: 0, 1, …

        Raises UserError if labels is a single class.
        """
        classes = torch.as_tensor(labels)
        if classes.ndim == 0:
            n = classes.item()
            raise UserError(
                f"labels={n}: give a list of classes, e.g. sample([{n}]) for one image of class {n}"
            )
        replaced = {"steps": steps, "guidance": guidance, "halting": halting}
        changes = {key: value for key, value in replaced.items() if value is not None}
        return self.sample_batch(classes, loops, seed, indices, changes).images

    @torch.inference_mode()
    def sample_batch(
        self,
        labels: Tensor,
        loops: LoopSchedule | None,
        seed: int,
        indices: list[int] | None = None,
        changes: dict[str, Any] | None = None,
        track: bool = False,
    ) -> SampleBatch:
        """Samples one image per label, with the run's sampler under the changes given.

        track: also return the relative update of each loop at each step.
        """
        sampler = replace(self.config.sampler, **(changes or {}))
        if loops is None:
            loops = sampler.loops if sampler.loops is not None else self.config.loops
        schedule = loop_schedule(loops, sampler.steps)
        # A pass that may halt is not padded: the mean over its own samples decides.
        rows = pad_rows(len(labels), self.device) if sampler.halting is None else list(range(len(labels)))
        indices = list(range(len(labels))) if indices is None else indices
        noise = SampleNoise(seed, [indices[row] for row in rows], self.device)
        count, labels = len(labels), labels[rows].to(self.device)
        updates: list[list[float]] = []
        passes: list[list[int]] = []  # loops of each pass, by step; a Heun step has two passes

        # The objective requests the prediction at a step; guidance decides which passes it takes.
        def predict(step: int, inputs: tuple[Tensor, ...]) -> Tensor:
            count = schedule[step]
            if step == len(passes):
                passes.append([])

            def network(parts: tuple[Tensor, ...], labels_B: Tensor) -> Tensor:
                options = {"exits": (count,), "track": track, "halt": sampler.halting}
                with autocast(self.device, self.precision):
                    done = self.backbone(*parts, labels_B=labels_B, **options)
                passes[step].append(done.loops)
                if track and len(passes[step]) == 1:
                    updates.append(done.updates.tolist())
                return done.exits[count].float()

            scale = guidance_scale(sampler.guidance, sampler.guidance_schedule, step, sampler.steps)
            return guide(network, inputs, labels, self.config.data.classes, scale)

        images = self._draw_and_decode(predict, noise, sampler, count)
        depths = [{n: ran.count(n) / len(ran) for n in set(ran)} for ran in passes]
        return SampleBatch(images, depths, updates)

    def sample_all(
        self, labels: Tensor, loops: LoopSchedule | None, seed: int, title: str
    ) -> SampleBatch | None:
        """All labels, sampler.batch of them at a time, with a progress bar. Image i has index i.

        Ranks take the batches in turn. The main process returns all samples, other ranks None. Depths
        are shares of all images; updates are those of the first batch.
        """
        batches = list(torch.arange(len(labels)).split(self.config.sampler.batch))
        world, rank = collectives.world_size_and_rank()
        parts: list[SampleBatch] = []
        with Bar(title, len(labels), unit=example_unit(self.config.data.shape)) as bar:
            for turn in range(0, len(batches), world):
                mine, drawn = turn + rank, None
                if mine < len(batches):
                    chosen = batches[mine]
                    drawn = self.sample_batch(labels[chosen], loops, seed, chosen.tolist(), track=mine == 0)
                given = collectives.gather(drawn) or []
                parts += [part for part in given if part is not None]
                bar.update(sum(len(part.images) for part in parts))
        if not parts:
            return None
        images = torch.cat([drawn.images for drawn in parts])
        return SampleBatch(images, average_depths(parts), parts[0].updates)

    def _draw_and_decode(
        self, predict: Any, noise: SampleNoise, sampler: SamplerConfig, count: int
    ) -> Tensor:
        """Draws with the objective's sampler, and decodes the first count samples to uint8 on the CPU."""
        data, tokens = self.config.data, self.config.objective.INPUTS == "tokens"
        shape = (data.tokens,) if tokens else data.shape
        drawn = self.objective.sample(predict, noise, shape, sampler)[:count]
        if data.kind == "pixels" and not tokens:
            return to_uint8(drawn).cpu()
        assert self.tokenizer is not None
        # In parts, because the last layers of a decoder take many times the memory of the latents.
        count = clips_per_batch(RECONSTRUCTED, data.shape)
        parts = [self.tokenizer.decode(part).cpu() for part in drawn.split(count)]
        return torch.cat(parts)


def pad_rows(count: int, device: torch.device) -> list[int]:
    """The rows 0…count − 1 of a batch, repeated on a CPU until their number divides by four.

    MKL multiplies matrices of one to three rows, such as the conditions of so few samples, with other
    kernels, and sigmoids of a number of values that four does not divide end in scalar code. Both round
    differently, so a sample would depend on how many are drawn with it.
    """
    padding = -count % 4 if device.type == "cpu" else 0
    return [row % count for row in range(count + padding)]


def average_depths(batches: list[SampleBatch]) -> list[DepthDistribution]:
    """The depths of all batches together: at each step, the share of all images at each loop count."""
    total = sum(len(batch.images) for batch in batches)
    averages: list[DepthDistribution] = []
    for at_step in zip(*(batch.depths for batch in batches), strict=True):
        images: dict[int, float] = defaultdict(float)
        for batch, depths in zip(batches, at_step, strict=True):
            for loops, share in depths.items():
                images[loops] += share * len(batch.images)
        averages.append({loops: count / total for loops, count in images.items()})
    return averages
