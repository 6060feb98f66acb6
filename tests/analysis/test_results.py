"""The command that writes pages, in a small checkout: templates, blocks, claims, and errors of one line."""

import re
from pathlib import Path

import pandas as pd
import pytest
from support.made_up_rows import arm, unique
from support.paths import ROOT

from eltlab.analysis import results
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows

PAGE = """# Is it good?

{% call claim(study("small").value("e") > study("small").value("u")) %}
It is behind.
{% endcall %}

## Table
{{ study("small").figure("anytime") }}
"""
README = "Before.\n\n<!-- list -->\nold\n<!-- /list -->\n\nAfter.\n"
LIST = """{% for name in pages %}
- {{ pages[name].question }} {{ pages[name].answer }}
{% endfor %}
{{ study("small").figure("anytime") }}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one page, whose answer is in a block of the README."""
    files = {"README.md": README, "analysis/pages/small.md": PAGE, "analysis/pages/blocks/list.md": LIST}
    for name, text in files.items():
        write(tmp_path, name, text)
    rows = [*arm("e", {1: 0.4, 4: 0.3}), *unique("u", 8, 0.2)]
    append_rows(tmp_path / "analysis/data/small.jsonl", rows)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def message(root: Path) -> str:
    with pytest.raises(UserError) as error:
        results.make_results(root)
    return str(error.value)


def test_templates_become_pages_and_blocks_with_links_from_their_own_folders(root: Path) -> None:
    made = results.make_results(root)
    page, readme = made.texts[Path("docs/results/small.md")], made.texts[Path("README.md")]
    assert page.startswith("# Is it good?\n\nIt is behind.\n\n## Table\n![") and page.endswith("\n")
    assert "](small-anytime.png)" in page
    assert readme.startswith("Before.\n\n<!-- list -->\n\n- Is it good? It is behind.\n")
    assert "](docs/results/small-anytime.png)" in readme
    assert readme.endswith("\n\n<!-- /list -->\n\nAfter.\n")
    assert list(made.figures) == [Path("docs/results/small-anytime.png")]


def test_the_example_of_the_documentation_is_a_page(root: Path) -> None:
    [example] = re.findall(r"```jinja\n(.*?)```", (ROOT / "docs" / "analysis.md").read_text(), re.DOTALL)
    write(root, "analysis/pages/small.md", example.replace("STUDY", "small"))
    (root / "analysis/data/small.jsonl").unlink()
    known = {"kd_classifier_se": 0.1, "memorised": 0.04, "train_loss": 0.2, "code": "c", "device": "CPU"}
    for seed in range(3):
        more = {"kd_classifier": 2.0 + seed, "seed": seed, "train_seconds": 60.0, **known}
        rows = [*arm("s/elastic", {2: 0.31, 4: 0.3 + seed / 99}, **more), *unique("s/twin", 8, 0.2, **more)]
        append_rows(root / "analysis/data/small.jsonl", rows)
    page = results.make_results(root).texts[Path("docs/results/small.md")]
    assert "the held-out loss is 1.000 (0.922 to 1.084) times" in page
    assert "| MACs per sample | heldout_loss | kd_classifier | memorised | train_loss | seeds |" in page
    assert "- The elastic model is behind its twin: the ratio of their heldout_loss is 1.55" in page
    assert "- Cost: 6 trainings (2 arms, 3 seeds)" in page


@pytest.mark.integration
def test_a_second_call_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write(results.make_results(root), root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert capsys.readouterr().out.splitlines()[0] == "docs/results/small.md: written"
    made = results.make_results(root)
    results.write(made, root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().out.splitlines() == [
        *("docs/results/small.md: unchanged", "README.md: unchanged"),
        "docs/results/small-anytime.png: unchanged",
    ]
    results.refuse_leftovers(made, root)
    write(root, "docs/results/old.png", "")
    with pytest.raises(UserError, match="no template makes docs/results/old"):
        results.refuse_leftovers(made, root)


def test_a_claim_that_the_rows_do_not_support_fails_with_its_sentence(root: Path) -> None:
    write(root, "analysis/pages/small.md", PAGE.replace(">", "<"))
    assert message(root) == (
        'analysis/pages/small.md:3: the rows do not support "It is behind."; change the sentence'
    )


def test_a_claim_is_about_one_condition() -> None:
    with pytest.raises(UserError, match=r"end it with .all\(\)"):
        results.claim(pd.Series([True, False]), lambda: "All are.")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("small.md", PAGE + "{{ nobody }}", "small.md:9: 'nobody' is undefined"),
        ("small.md", PAGE + "{% if %}", "small.md:9: Expected an expression"),
        ("small.md", PAGE + '{{ study("none").table() }}', "none.jsonl: no such folder or file of rows"),
        ("small.md", PAGE + '{{ study("small").value("x") }}', "small.md:9: x: arms: e, u"),
        ("small.md", PAGE + '{{ "%d" | format(study("small").name) }}', "small.md:9: %d format: a"),
        ("small.md", "## Table", "small.md: must start with # and its question"),
        ("blocks/other.md", "text", "<!-- other --> and <!-- /other --> must be once"),
    ],
)
def test_errors_are_one_line_that_names_the_template(root: Path, file: str, text: str, said: str) -> None:
    write(root, f"analysis/pages/{file}", text)
    found = message(root)
    assert said in found and "\n" not in found


def test_outside_a_checkout_there_is_nothing_to_write(root: Path) -> None:
    (root / "README.md").unlink()
    assert message(root).endswith("README.md: no such file; results are written in a checkout")


def test_cells_of_a_table_have_their_formats_and_missing_ones_are_empty() -> None:
    table = pd.DataFrame({"fid": [1.25, None], "samples": [1000, 20]})
    lines = results.format_cells(table, {"samples": "{:,}", "fid": "{:.1f}"}).splitlines()
    assert lines == ["| samples | fid |", "|---|---|", "| 1,000 | 1.2 |", "| 20 |  |"]
