"""The pages of docs/ that commands write."""

from support.paths import ROOT

from eltlab.analysis import paper


def test_the_page_has_the_table():
    """`python -m eltlab.analysis.paper --write` puts it there."""
    assert f"```text\n{paper.format_page()}\n```" in (ROOT / "docs" / "compute.md").read_text()
