"""A trained elastic model: the EMA weights of a run, drawn from at any loop count."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eltlab.build import (
    build_backbone,
    build_objective,
    choose_device,
    choose_precision,
)
from eltlab.config import Config, DiffusionSamplerConfig, MaskedSamplerConfig
from eltlab.data.images import to_uint8
from eltlab.data.tokenizer import PatchCodebook
from eltlab.generation.diffusion import Diffusion
from eltlab.generation.guidance import guided
from eltlab.generation.masked import Masked
from eltlab.progress import Bar
from eltlab.runs import Run, read_checkpoint, restore
from eltlab.schedule import guidance_scale, loop_schedule
from eltlab.seeds import SampleNoise


class Elastic:
    """A backbone with its objective, sampler and tokenizer: `sample` gives images.

    Args:
        backbone: the averaged network, in evaluation mode, on its device.
        config: of the run; its sampler section is the default of every draw.
        tokenizer: of masked models.
    """

    def __init__(
        self, backbone: nn.Module, config: Config, tokenizer: PatchCodebook | None
    ) -> None:
        self.backbone, self.config, self.tokenizer = backbone, config, tokenizer
        self.objective = build_objective(config)
        self.device = next(backbone.parameters()).device
        self.precision = choose_precision(config.trainer.precision, self.device)

    def sample(
        self,
        labels: Tensor | list[int],
        loops: int | list[int] | None = None,
        steps: int | None = None,
        seed: int = 0,
        indices: list[int] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Draws one image a label: uint8 [N, C, H, W].

        Args:
            labels: class of each image; `classes` (the null label) draws unconditionally.
            loops: one loop count, or one per step; the trained count where left out.
            steps, guidance: in place of the run's sampler.steps and sampler.guidance.
            seed, indices: the noise of image i is a function of (seed, indices[i]); 0, 1, … by default.
        """
        changes: dict[str, Any] = {}
        if steps is not None:
            changes["steps"] = steps
        if guidance is not None:
            changes["guidance"] = guidance
        images, _ = self.draw(torch.as_tensor(labels), loops, seed, indices, changes)
        return images

    @torch.inference_mode()
    def draw(
        self,
        labels: Tensor,
        loops: int | list[int] | None,
        seed: int,
        indices: list[int] | None = None,
        changes: dict[str, Any] | None = None,
        track: bool = False,
    ) -> tuple[Tensor, list[list[float]]]:
        """`sample`, and with track the relative update of each loop at each step."""
        sampler = replace(self.config.sampler, **(changes or {}))
        if loops is None:
            loops = sampler.loops if sampler.loops is not None else self.config.loops
        schedule = loop_schedule(loops, sampler.steps)
        labels = labels.to(self.device)
        noise = SampleNoise(seed, indices or list(range(len(labels))), self.device)
        updates: list[list[float]] = []

        def predict(step: int, inputs: tuple[Tensor, ...]) -> Tensor:
            count = schedule[step]

            def network(parts: tuple[Tensor, ...], labels_B: Tensor) -> Tensor:
                with self.autocast():
                    done = self.backbone(*parts, labels_B=labels_B, exits=(count,), track=track)
                if track:
                    updates.append(done.updates.tolist())
                return done.exits[count].float()

            scale = guidance_scale(sampler.guidance, sampler.guidance_schedule, step, sampler.steps)
            return guided(network, inputs, labels, self.config.data.classes, scale)

        return self._decode(predict, noise, sampler), updates

    def draw_all(
        self, labels: Tensor, loops: int | list[int] | None, seed: int, title: str
    ) -> tuple[Tensor, list[list[float]]]:
        """`draw` in batches of the run's batch_size under a progress bar; image i has sample index i.

        The relative updates are those of the first batch.
        """
        parts: list[Tensor] = []
        updates: list[list[float]] = []
        done = 0
        with Bar(title, len(labels)) as bar:
            for part in labels.split(self.config.batch_size):
                indices = list(range(done, done + len(part)))
                images, moved = self.draw(part, loops, seed, indices, track=not parts)
                parts.append(images)
                updates = updates or moved
                done += len(part)
                bar.update(done)
        return torch.cat(parts), updates

    def _decode(self, predict: Any, noise: SampleNoise, sampler: Any) -> Tensor:
        data = self.config.data
        if isinstance(self.objective, Masked):
            assert isinstance(sampler, MaskedSamplerConfig) and self.tokenizer is not None
            ids = self.objective.sample(
                predict,
                noise,
                data.tokens,
                sampler.steps,
                sampler.temperature,
                sampler.temperature_range,
                sampler.confidence_noise,
            )
            return self.tokenizer.decode(ids).cpu()
        assert isinstance(self.objective, Diffusion) and isinstance(sampler, DiffusionSamplerConfig)
        shape = (data.channels, data.size, data.size)
        x = self.objective.sample(
            predict, noise, shape, sampler.steps, sampler.name == "ddpm", sampler.clip
        )
        return to_uint8(x).cpu()

    def autocast(self) -> Any:
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def load(run: str | Path, accelerator: str = "auto") -> Elastic:
    """The EMA model of a run folder, ready to `.sample(labels, loops=…, steps=…, seed=…)`.

    Raises UserError where the folder is not a run or holds no sound checkpoint.
    """
    opened = Run.open(Path(run).expanduser())
    opened.config.trainer.accelerator = accelerator
    return load_run(opened.folder, opened.config)[0]


def load_run(folder: Path, config: Config) -> tuple[Elastic, dict[str, Any]]:
    """The EMA model of a run under this configuration, and the run's counters.

    The codebook of a masked model is the one in its checkpoint.
    """
    path = Run(folder, config).checkpoint
    checkpoint = read_checkpoint(path)
    backbone = build_backbone(config)
    restore(backbone, checkpoint, "ema.", path)
    backbone.requires_grad_(False).eval().to(choose_device(config.trainer.accelerator))
    codes, data = checkpoint["eltlab"]["codebook"], config.data
    tokenizer = None if codes is None else PatchCodebook(codes, data.channels, data.patch)
    return Elastic(backbone, config, tokenizer), checkpoint["eltlab"]
