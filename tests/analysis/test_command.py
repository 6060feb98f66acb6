"""The commands of analysis: what they read, what they print, and their one-line errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.analysis_commands import TABLES, run
from support.made_up_rows import row

from eltlab.analysis.command import COMMITTED, committed_files, read, read_report_rows
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows


@pytest.mark.integration
def test_the_real_command_prints_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eltlab.analysis.study", "anytime_quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("study", "anytime_quick", cwd=tmp_path).stdout


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_printed(name: str, tmp_path: Path) -> None:
    arguments, message = TABLES[name]
    done = run(name, *arguments, cwd=tmp_path)
    assert done.returncode == 0 and message in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "headline",
            ["out=a.txt", "anytime_diffusion"],
            "out=a.txt: a table is a .md or .csv file",
        ),
        ("pareto", ["anytime_quik"], "anytime_quik: no such folder or file of rows; committed are"),
        ("pareto", ["metrik=fid", "cifar"], "metrik=fid: did you mean metric?"),
        ("pareto", ["out=a.gif", "cifar"], "out=a.gif: a figure is .png"),
        ("pareto", ["metric=fvd", "cifar"], "metric=fvd: no such metric in the rows; they have"),
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
    name: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\xff\xfe")
    (tmp_path / "torn.jsonl").write_text('{"kind": "tokenizer"}\n{"kind')
    before = sorted(tmp_path.iterdir())
    done = run(name, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_help_is_the_docstring(tmp_path: Path) -> None:
    done = run("study", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "python -m eltlab.analysis.study [out=study.md]" in done.stdout


def test_a_name_of_committed_rows_gives_way_to_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(read("cifar")) > 1
    append_rows(Path("cifar"), [row("a", 4, 1.0)])
    assert len(read("cifar")) == 1
    with pytest.raises(UserError, match="runs: no such folder or file of rows"):
        read()


def test_a_report_shows_the_committed_rows_until_there_are_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    committed, source = read_report_rows(None)
    assert source == "the studies that come with eltlab" and len(committed) == len(
        read_report_rows(COMMITTED)[0]
    )
    assert len(committed) == sum(len(read(path.stem)) for path in committed_files())
    append_rows(tmp_path / "runs" / "a" / "rows.jsonl", [row("a", 4, 1.0)])
    own, source = read_report_rows(None)
    assert (len(own), source) == (1, "runs")
    assert len(read_report_rows(COMMITTED)[0]) == len(committed)
