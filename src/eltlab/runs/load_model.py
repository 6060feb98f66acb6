"""Loads a trained run, or an exported file, as a sampler."""

from pathlib import Path
from typing import Any

from torch import Tensor

from eltlab.common.torch_device import choose_device
from eltlab.config.schema import Config
from eltlab.data.encoded.encoded_split import load_set_tokenizer
from eltlab.data.encoded.manifest import open_set
from eltlab.data.tokenizers.patch_codebook import PatchCodebook
from eltlab.data.tokenizers.tokenizer import Tokenizer
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.backbone import build_backbone
from eltlab.model.patches import patches_of
from eltlab.runs import export_file
from eltlab.runs.checkpoints import check_architecture, read_checkpoint
from eltlab.runs.run_folder import Run


def load(run: str | Path, accelerator: str = "auto") -> AnytimeSampler:
    """The EMA model of a run folder or an exported file, ready for `.sample(labels, loops=…, seed=…)`.

    Args:
        run: the folder, or a file whose name ends in .safetensors.
        accelerator: auto, cpu or cuda.

    Raises UserError if it is neither, or if its weights are damaged.
    """
    path = Path(run).expanduser()
    if path.suffix == ".safetensors":
        config, weights, tokenizer = export_file.read_export(path)
        config.trainer.accelerator = accelerator
        return build_sampler(config, weights, tokenizer, path)
    config = Run.open(path).config
    config.trainer.accelerator = accelerator
    return load_run(path, config)[0]


def load_run(folder: Path, config: Config) -> tuple[AnytimeSampler, dict[str, Any]]:
    """The EMA model of a run under this configuration, and the counters of its checkpoint.
    The codebook over patches is in the checkpoint; an encoded set has its own tokenizer. Raises UserError."""
    path = Run(folder, config).checkpoint
    checkpoint = read_checkpoint(path)
    state, counters = checkpoint["state_dict"], checkpoint["eltlab"]
    weights = {name[4:]: value for name, value in state.items() if name.startswith("ema.")}
    tokenizer: Tokenizer | None = None
    if config.data.kind != "pixels":
        tokenizer = load_set_tokenizer(open_set(config.data))
    elif counters["codebook"] is not None:
        tokenizer = PatchCodebook(counters["codebook"], patches_of(config.data))
    return build_sampler(config, weights, tokenizer, path, counters["code"]), counters


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
