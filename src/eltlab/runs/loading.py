"""Opens a trained run, or an exported file, as a sampler."""

from pathlib import Path
from typing import Any

from torch import Tensor

from eltlab.common.torch_device import choose_device
from eltlab.config.schema import Config
from eltlab.data.encoded.encoded_split import tokenizer_of_set
from eltlab.data.encoded.manifest import opened
from eltlab.data.tokenizers.patch_codebook import (
    Decoder,
    PatchCodebook,
)
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.build import build_backbone, patches_of
from eltlab.runs import export_file
from eltlab.runs.checkpoints import read_checkpoint, restore
from eltlab.runs.run_folder import Run


def load(run: str | Path, accelerator: str = "auto") -> AnytimeSampler:
    """The EMA model of a run folder or of an exported .safetensors file, ready to
    `.sample(labels, loops=…, steps=…, seed=…)`.

    Raises UserError where it is neither, or holds no sound checkpoint.
    """
    path = Path(run).expanduser()
    if path.suffix == ".safetensors":
        config, tensors, tokenizer = export_file.read(path)
        config.trainer.accelerator = accelerator
        return assemble(config, tensors, tokenizer, path)
    opened = Run.open(path)
    opened.config.trainer.accelerator = accelerator
    return load_run(opened.folder, opened.config)[0]


def load_run(folder: Path, config: Config) -> tuple[AnytimeSampler, dict[str, Any]]:
    """The EMA model of a run under this configuration, and the run's counters. Raises UserError.

    The codebook over patches is the one in its checkpoint; another tokenizer is that of its data.
    """
    path = Run(folder, config).checkpoint
    checkpoint = read_checkpoint(path)
    state = {
        name.removeprefix("ema."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("ema.")
    }
    counters = checkpoint["eltlab"]
    tokenizer: Decoder | None = None
    if config.data.kind != "pixels":
        tokenizer = tokenizer_of_set(opened(config.data))
    elif counters["codebook"] is not None:
        tokenizer = PatchCodebook(counters["codebook"], patches_of(config.data))
    return assemble(config, state, tokenizer, path), counters


def assemble(
    config: Config, state: dict[str, Tensor], tokenizer: Decoder | None, path: Path
) -> AnytimeSampler:
    """The model of weights that were read from path, on its device."""
    backbone = build_backbone(config)
    restore(backbone, state, path)
    backbone.requires_grad_(False).eval().to(choose_device(config.trainer.accelerator))
    return AnytimeSampler(backbone, config, tokenizer)
