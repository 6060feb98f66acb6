"""python -m eltlab.export run=DIR out=model.safetensors: the averaged model in one file, to hand on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.cli import open_run, run_verb
from eltlab.compose import parse_config
from eltlab.config import Config, to_yaml
from eltlab.errors import UserError
from eltlab.files import renamed

if TYPE_CHECKING:
    from torch import Tensor

    from eltlab.elastic import Elastic

CODEBOOK = "codebook"  # the one tensor of an export that is not the backbone's


@dataclass
class Asked:
    run: str | None = None
    out: str = "model.safetensors"


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "  run=DIR                the folder that fit printed (required)\n"
        "  out=model.safetensors  EMA weights, codebook and configuration\n\n"
        "Load it where eltlab is installed, no run folder and no Lightning needed:\n"
        "  eltlab.load('model.safetensors').sample([3, 7], loops=2)"
    )


def main(overrides: list[str]) -> None:
    run, config, asked = open_run(overrides, Asked())
    out = Path(asked.out).expanduser()
    if out.suffix != ".safetensors":
        raise UserError(
            f"out={asked.out}: exports are safetensors files; end the name in .safetensors"
        )

    from eltlab.elastic import load_run

    model, counters = load_run(run.folder, config)
    write(out, model, counters)
    print(f"out: {asked.out}")


def write(path: Path, model: "Elastic", counters: dict[str, Any]) -> None:
    """One safetensors file: the averaged weights under the backbone's names, CODEBOOK where the model
    has one; in the metadata the configuration as YAML, the images seen and the code that trained it."""
    from safetensors.torch import save_file

    tensors = {
        name: value.cpu().contiguous() for name, value in model.backbone.state_dict().items()
    }
    if model.tokenizer is not None:
        tensors[CODEBOOK] = model.tokenizer.codes.cpu().contiguous()
    metadata = {
        "format": "pt",
        "eltlab.config": to_yaml(model.config),
        "eltlab.images_seen": str(counters["images_seen"]),
        "eltlab.code": counters["code"],
    }
    with renamed(path) as temporary:
        save_file(tensors, temporary, metadata)


def read(path: Path) -> tuple[Config, dict[str, "Tensor"]]:
    """The configuration and the tensors that `write` wrote. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder or a file that export wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: truncated or not a safetensors file; export the run again"
        ) from error
    if "eltlab.config" not in metadata:
        raise UserError(f"{path}: of another program; give a file that eltlab.export wrote")
    return parse_config(metadata["eltlab.config"], path), tensors


if __name__ == "__main__":
    run_verb(main, usage)
