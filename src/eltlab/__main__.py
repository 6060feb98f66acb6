"""python -m eltlab: lists the verbs."""

import ast
from pathlib import Path

from eltlab.common.command import run_command
from eltlab.common.errors import UserError, suggest

VERBS = (
    *("plan", "fit", "evaluate", "sample", "sweep", "report"),
    *("encode", "bench", "export", "dashboard"),
)


def main(arguments: list[str]) -> None:
    if arguments:
        hint = suggest(arguments[0], VERBS, "verbs")
        raise UserError(f"{arguments[0]}: run a verb as python -m eltlab.VERB; {hint}")
    print(usage(arguments))


def usage(arguments: list[str]) -> str:
    return (
        "usage: python -m eltlab.VERB [KEY=VALUE …]\n\n"
        + "\n".join(f"  {verb:<9}  {_summary(verb)}" for verb in VERBS)
        + "\n\npython -m eltlab.VERB --help explains a verb and its keys."
    )


def _summary(verb: str) -> str:
    """What the first line of a verb's docstring says after its usage, read without importing it."""
    source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
    first_line = str(ast.get_docstring(ast.parse(source))).splitlines()[0]
    return first_line.partition(": ")[2]


if __name__ == "__main__":
    run_command(main, usage)
