"""Loads a trained run, or an exported file, as a sampler."""

from pathlib import Path
from typing import Any

from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.torch_device import choose_device
from eltlab.config.rules import check_average
from eltlab.config.schema import Config, EmaConfig
from eltlab.data.encoded.encoded_split import load_set_tokenizer
from eltlab.data.encoded.manifest import open_set
from eltlab.data.tokenizers.patch_codebook import PatchCodebook
from eltlab.data.tokenizers.tokenizer import Tokenizer
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.backbone import build_backbone
from eltlab.model.patches import patches_of
from eltlab.runs import export_file
from eltlab.runs.checkpoints import check_architecture, read_checkpoint
from eltlab.runs.old_runs import has_one_average
from eltlab.runs.run_folder import Run


def load(run: str | Path, accelerator: str = "auto", ema_length: float | None = None) -> AnytimeSampler:
    """The EMA model of a run folder or an exported file, ready for `.sample(labels, loops=…, seed=…)`.

    Args:
        run: the folder, or a file whose name ends in .safetensors.
        accelerator: auto, cpu or cuda.
        ema_length: which of a run's averages (ema.lengths); None: its ema.length. A file has one.

    Raises UserError if it is neither, if its weights are damaged, or if it has no such average.
    """
    path = Path(run).expanduser()
    if path.suffix == ".safetensors":
        config, weights, tokenizer = export_file.read_export(path)
        if ema_length not in (None, config.ema.length):
            raise UserError(
                f"{path}: holds the average of ema_length={config.ema.length}; export the run again"
            )
        config.trainer.accelerator = accelerator
        return build_sampler(config, weights, tokenizer, path)
    config = Run.open(path).config
    config.trainer.accelerator = accelerator
    config.ema.length = ema_length or config.ema.length
    check_average(config.ema)
    return load_run(path, config)[0]


def load_run(folder: Path, config: Config) -> tuple[AnytimeSampler, dict[str, Any]]:
    """The model of a run under this configuration with the average of ema.length, and its counters.
    The codebook over patches is in the checkpoint; an encoded set has its own tokenizer. Raises UserError."""
    path = Run(folder, config).checkpoint
    checkpoint = read_checkpoint(path)
    state, counters = checkpoint["state_dict"], checkpoint["eltlab"]
    weights = averaged_weights(state, config.ema)
    tokenizer: Tokenizer | None = None
    if config.data.kind != "pixels":
        tokenizer = load_set_tokenizer(open_set(config.data))
    elif counters["codebook"] is not None:
        tokenizer = PatchCodebook(counters["codebook"], patches_of(config.data))
    return build_sampler(config, weights, tokenizer, path, counters["code"]), counters


def averaged_weights(state: dict[str, Tensor], ema: EmaConfig) -> dict[str, Tensor]:
    """The average of ema.length in a checkpoint's state_dict, under the backbone's names."""
    assert ema.length is not None  # resolve has set it
    # The averages are numbered in the order of ema.lengths (training/looped_module.py).
    prefix = "ema." if has_one_average(state) else f"ema.{ema.lengths.index(ema.length)}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def build_sampler(
    config: Config,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    path: Path,
    code: str | None = None,
) -> AnytimeSampler:
    """The model with these weights, on its device. path and code (version) name the file in errors."""
    backbone = build_backbone(config)
    check_architecture(backbone, weights, path, code)
    backbone.load_state_dict(weights)
    backbone.requires_grad_(False).eval().to(choose_device(config.trainer.accelerator))
    return AnytimeSampler(backbone, config, tokenizer)
