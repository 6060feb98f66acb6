"""python -m eltlab.export run=DIR out=model.safetensors: the averaged model in one file, to hand on."""

from dataclasses import dataclass
from pathlib import Path

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.common.errors import UserError


@dataclass
class Asked:
    run: str | None = None
    out: str = "model.safetensors"


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "  run=DIR                the folder that fit printed (required)\n"
        "  out=model.safetensors  EMA weights, tokenizer and configuration\n\n"
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

    from eltlab.runs.export_file import write_export
    from eltlab.runs.loading import load_run

    model, counters = load_run(run.folder, config)
    write_export(out, config, model.backbone.state_dict(), model.tokenizer, counters)
    print(f"out: {asked.out}")


if __name__ == "__main__":
    run_command(main, usage)
