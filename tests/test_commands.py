"""The list of verbs, and the commands of analysis/ on committed rows and with invalid input."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

import eltlab
from eltlab import __main__ as package_main

FIGURES = {
    "anytime": ["anytime_small"],
    "pareto": ["loops_vs_depth_quick"],
    "ablation": ["loop_anatomy_quick"],
    "scaling": ["anytime_quick"],
    "dynamics": ["arms=elastic,vanilla-loops4", "anytime_small"],
    "samples": ["anytime_small"],
}
TABLES = {
    "headline": (["anytime_diffusion"], "40.29 ± 8.96"),
    "study": (["anytime_quick"], "vanilla-loops4"),
}


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"eltlab.analysis.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_written_as_png_and_pdf(name: str, tmp_path: Path) -> None:
    done = run(name, *FIGURES[name], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f": {name}.png")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    before = (tmp_path / f"{name}.png").read_bytes()
    assert run(name, *FIGURES[name], cwd=tmp_path).returncode == 0
    assert (tmp_path / f"{name}.png").read_bytes() == before  # the same rows, the same picture


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_printed(name: str, tmp_path: Path) -> None:
    arguments, said = TABLES[name]
    done = run(name, *arguments, cwd=tmp_path)
    assert done.returncode == 0 and said in done.stdout, done.stderr


@pytest.mark.parametrize("name", TABLES)
def test_out_writes_the_printed_table_as_markdown_or_csv(name: str, tmp_path: Path) -> None:
    rows = TABLES[name][0]
    for suffix in (".md", ".csv"):
        out = tmp_path / f"table{suffix}"
        done = run(name, *rows, f"out={out}", cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == f"table: {out}", done.stderr
    cells = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert cells[0][0] == "arm" and len(cells) > 2
    printed = [line.split() for line in done.stdout.splitlines()]
    for row in cells:  # without the spaces between cells
        assert " ".join(row).split() in printed
    heading, rule, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert heading == f"| {' | '.join(cells[0])} |" and set(rule) == {"|", "-"}
    assert lines == [f"| {' | '.join(row)} |" for row in cells[1:]]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "headline",
            ["out=a.txt", "anytime_diffusion"],
            "out=a.txt: a table is a .md or .csv file",
        ),
        ("pareto", ["anytime_quik"], "anytime_quik: no such folder or file of rows; committed are"),
        ("pareto", ["metrik=fid", "cifar"], "metrik=fid: did you mean metric?"),
        ("pareto", ["out=a.gif", "cifar"], "out=a.gif: a figure is .png"),
        ("pareto", ["metric=fvd", "cifar"], "metric=fvd: no such distance in the rows; they have"),
        ("anytime", ["anytime_quick", "anytime_diffusion"], "cannot be compared"),
        ("anytime", ["empty"], "no evaluations among 0 rows"),
        ("anytime", ["rows.parquet"], "rows.parquet: not a file of rows; give a .jsonl file"),
        ("anytime", ["torn.jsonl"], "torn.jsonl, line 2: not a row (JSON)"),
        ("ablation", ["factor=supervision.name", "supervision_digits"], "stands for several arms"),
        ("ablation", ["loops=0", "loop_anatomy_quick"], "loops=0: give a whole number above 0"),
        ("dynamics", ["loops_vs_depth_quick"], "no dynamics.csv next to these rows"),
        ("study", ["anytime_diffusion"], "python -m eltlab.analysis.headline"),
        ("collect", ["anytime_quick"], "out= is missing"),
        ("collect", ["out=a.jsonl", "samples=x", "cifar"], "samples=x: give the seed"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    name: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\xff\xfe")
    (tmp_path / "torn.jsonl").write_text('{"kind": "tokenizer"}\n{"kind')
    before = sorted(tmp_path.iterdir())
    done = run(name, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_package_lists_its_verbs(capsys) -> None:
    package_main.main([])
    listed = capsys.readouterr().out
    assert listed.splitlines()[0] == "usage: python -m eltlab.VERB [KEY=VALUE …]"
    package = Path(eltlab.__file__).parent
    verbs = [path.stem for path in package.glob("*.py") if "run_command(" in path.read_text()]
    for verb in set(verbs) - {"__main__"}:
        assert re.search(rf"^  {verb} +\S+ ", listed, re.MULTILINE), verb


def test_a_verb_given_to_the_package_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "eltlab", "fitt"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: fitt: run a verb as python -m eltlab.VERB; did you mean fit?\n"
