"""python -m eltlab.export run=DIR out=model.safetensors: the averaged model in one file, to share.

Keys of fit: ema.length, the average to export.
The file needs no run folder and no Lightning: eltlab.load('model.safetensors').sample([3, 7], loops=2)
"""

from dataclasses import dataclass
from pathlib import Path

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key


@dataclass
class Keys:
    run: str | None = key(None, "the folder that fit printed (required)")
    out: str = key("model.safetensors", "file of the EMA weights, tokenizer and configuration")


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()))


def main(overrides: list[str]) -> None:
    run, config, keys = open_run(overrides, Keys())
    out = Path(keys.out).expanduser()
    if out.suffix != ".safetensors":
        raise UserError(f"out={keys.out}: exports are safetensors files; end the name in .safetensors")

    from eltlab.runs.export_file import write_export
    from eltlab.runs.load_model import load_run

    model, counters = load_run(run.folder, config)
    write_export(out, config, model.backbone.state_dict(), model.tokenizer, counters)
    print(f"out: {keys.out}")


if __name__ == "__main__":
    run_command(main, usage)
