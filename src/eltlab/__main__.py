"""python -m eltlab: the verbs, one line each."""

import ast
from pathlib import Path

VERBS = (
    *("plan", "fit", "evaluate", "sample", "sweep", "report"),
    *("encode", "bench", "export", "dashboard"),
)


def main() -> None:
    print("The verbs of eltlab; each answers --help:\n")
    for verb in VERBS:
        print(f"  {_first_line(verb)}")


def _first_line(verb: str) -> str:
    """The first line of a verb's docstring, read without importing it."""
    source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(source))).splitlines()[0]


if __name__ == "__main__":
    main()
