"""The verb report: which rows its page shows, and mistakes that write no page."""

from pathlib import Path
from typing import Any

import pytest
from support.html_tables import Tables

from eltlab import report
from eltlab.analysis import command
from eltlab.common.errors import UserError


@pytest.mark.slow
def test_all_committed_rows_make_a_page(tmp_path: Path, monkeypatch: Any) -> None:
    """They are the default if there are no runs; each committed study has a section."""
    monkeypatch.chdir(tmp_path)
    report.main([])
    html = (tmp_path / "report.html").read_text()
    for name in ("anytime-quick", "loops_vs_depth-quick", "pareto-quick", "anytime-small"):
        assert f">{name}</h2>" in html
    assert len(Tables(html).found["headline"]) >= 10 and "<input" in html


@pytest.mark.integration
def test_committed_rows_are_shown_until_there_are_runs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    some = [path for path in command.committed_files() if path.stem in ("cifar", "sprites_fit")]
    monkeypatch.setattr(command, "committed_files", lambda: some)
    monkeypatch.chdir(tmp_path)
    report.main([])
    printed = capsys.readouterr()
    assert printed.out == "report: report.html\n" and printed.err.count("report: ") == len(some)
    html = (tmp_path / "report.html").read_text()
    assert len(Tables(html).found["points"]) == len(some) and "<input" in html
    # If there are runs, the page shows them.
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "rows.jsonl").touch()
    with pytest.raises(UserError, match="no evaluations among 0 rows"):
        report.main([])


def test_mistakes_write_no_page(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["runs_dir=nowhere"], "nowhere: no such folder or file of rows"),
        (["out=report.pdf"], r"out=report\.pdf: the page is an \.html file"),
        (["run_dir=runs"], "run_dir=runs: did you mean runs_dir"),
    ):
        with pytest.raises(UserError, match=message):
            report.main(arguments)
    assert not list(tmp_path.iterdir())
