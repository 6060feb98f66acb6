"""The exported model: one safetensors file with weights, tokenizer and configuration."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path
from eltlab.common.tensor_files import read_tensors
from eltlab.config.keys import to_yaml
from eltlab.config.schema import Config
from eltlab.data.tokenizers.patch_codebook import PatchCodebook
from eltlab.data.tokenizers.tokenizer import PerFrame, Tokenizer, adapt_to_clips
from eltlab.data.tokenizers.tokenizer_files import pack_tokenizer, unpack_tokenizer
from eltlab.model.patches import patches_of
from eltlab.runs.compose_config import parse_config

# Names of tensors that are not the backbone's: the codes over patches, or a prefix for a tokenizer.
CODEBOOK, TOKENIZER = "codebook", "tokenizer."
SETTINGS = "eltlab.tokenizer"  # in the metadata


def write_export(
    path: Path,
    config: Config,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    counters: dict[str, Any],
) -> None:
    """Writes the averaged weights under the backbone's names, the tokenizer, and (as metadata) the
    configuration, the length of the average, the images seen, and the version and source that trained the
    run."""
    metadata = {
        "format": "pt",
        "eltlab.config": to_yaml(config),
        "eltlab.ema_length": str(config.ema.length),
        "eltlab.images_seen": str(counters["images_seen"]),
        "eltlab.code": counters["code"],
        "eltlab.source": counters["source"] or "unknown",
    }
    if isinstance(tokenizer, PatchCodebook):
        weights = weights | {CODEBOOK: tokenizer.codes}
    elif tokenizer is not None:
        inner = tokenizer.inner if isinstance(tokenizer, PerFrame) else tokenizer
        tensors, settings = pack_tokenizer(inner)  # type: ignore[arg-type]
        weights = weights | {TOKENIZER + name: value for name, value in tensors.items()}
        metadata[SETTINGS] = json.dumps(settings)
    tensors = {name: value.cpu().contiguous() for name, value in weights.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_export(path: Path) -> tuple[Config, dict[str, Tensor], Tokenizer | None]:
    """The configuration, the weights and the tokenizer of an exported file. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder or a file that export wrote")
    tensors, metadata = read_tensors(path, "export the run again")
    if "eltlab.config" not in metadata:
        raise UserError(f"{path}: not an exported model; give a file that eltlab.export wrote")
    config = parse_config(metadata["eltlab.config"], path)
    codes = tensors.pop(CODEBOOK, None)
    if codes is not None:
        return config, tensors, PatchCodebook(codes, patches_of(config.data))
    if SETTINGS not in metadata:
        return config, tensors, None
    ours = {name for name in tensors if name.startswith(TOKENIZER)}
    theirs = {name.removeprefix(TOKENIZER): tensors.pop(name) for name in ours}
    tokenizer = unpack_tokenizer(theirs, json.loads(metadata[SETTINGS]))
    return config, tensors, adapt_to_clips(tokenizer, config.data.frames)
