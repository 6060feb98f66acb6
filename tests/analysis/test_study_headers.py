"""The comment of a study file about its quick preset."""

from pathlib import Path

import pytest
from support.made_up_rows import arm, table

from eltlab.analysis.study_headers import describe_quick, measure_spread, study_headers
from eltlab.runs.row_files import append_rows

STUDY = "# Question?\n# Cost: 2 trainings.\n# Finding: none yet.\nbase: []\n"


def rows(one: list[float], other: list[float]) -> list[dict]:
    """Two arms with a held-out loss per seed; their exits at two loops must not matter."""
    times = {"created": "2026-01-01T00:10:00+00:00", "train_seconds": 240.0}
    return [
        line
        for name, losses in (("a", one), ("b", other))
        for seed, loss in enumerate(losses)
        for line in arm(name, {2: 9.0 * seed, 4: loss}, seed=seed, **times)
    ]


def test_spreads_are_standard_deviations_of_means_and_of_seeds() -> None:
    found = measure_spread(table(rows([1.0, 3.0], [4.0, 8.0])))
    assert found.arms == pytest.approx(8**0.5)  # of the means 2 and 6
    assert found.seeds == pytest.approx(5**0.5)  # the mean of the variances 2 and 8
    assert not found.is_enough
    assert measure_spread(table(rows([1.0, 1.1], [2.0, 2.1]))).is_enough


def test_the_comment_says_whether_the_full_budget_would_do() -> None:
    apart, close = table(rows([1.0, 1.1], [2.0, 2.1])), table(rows([1.0, 2.0], [1.5, 2.0]))
    words = [
        " ".join(describe_quick(*pair).replace("#", "").split()) for pair in ((apart, close), (close, apart))
    ]
    assert words[0] == (
        "Quick: the held-out loss spreads by 0.7071 between arms and by 0.0707 between seeds "
        "(standard deviations), in 4 minutes on two cores."
    )
    assert words[1].endswith("too little to order the arms; the full budget does: 0.7071 and 0.0707.")
    assert "has not been run" in describe_quick(close, None)


def test_the_comment_is_replaced_and_stays_before_the_finding(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    for name in ("one", "two"):
        (tmp_path / "sweeps" / f"{name}.yaml").write_text(STUDY)
    append_rows(tmp_path / "analysis/data/one_quick.jsonl", rows([1.0, 1.1], [2.0, 2.1]))
    [(path, text)] = study_headers(tmp_path).items()
    assert path == Path("sweeps/one.yaml")
    lines = text.splitlines()
    assert lines[1].startswith("# Cost") and lines[2].startswith("# Quick: ") and "# Finding" in lines[4]
    (tmp_path / path).write_text(text)
    assert study_headers(tmp_path) == {path: text}
