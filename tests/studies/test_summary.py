"""The table that a sweep prints at its end."""

import json
from pathlib import Path

from support.paths import ROOT
from support.small_studies import TUNED, filled, opened

from eltlab.analysis.arm_table import arm_lines
from eltlab.analysis.comparable_rows import comparable
from eltlab.common.text import format_si
from eltlab.config.cost.flops import budget_flops
from eltlab.runs.result_table import load
from eltlab.studies.summary import arm_tables, tuning_lines
from eltlab.studies.tuning import tuned_arms

ROWS = ROOT / "analysis" / "data" / "loops_vs_depth_quick.jsonl"


def test_a_table_shows_one_protocol_and_the_latest_rows(tmp_path: Path) -> None:
    """Rows of earlier steps or of a second protocol do not change the table of a study."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    wrong = {"fd_classifier": 12345.0}
    early = [{**row, **wrong, "images_seen": row["images_seen"] // 2} for row in rows]
    other = [{**row, "fd_classifier": 7.0, "protocol": "0123456789"} for row in rows]
    early_other = [{**row, **wrong, "protocol": "0123456789"} for row in early]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in early + rows + early_other + other))

    own = arm_lines(comparable(load(ROWS)), rows[0]["study"], "fd_classifier")
    assert arm_tables(load(ROWS), rows[0]["study"], "fd_classifier") == own
    lines = arm_tables(load(path), rows[0]["study"], "fd_classifier")
    assert lines[: len(own) + 1] == [f"protocol {rows[0]['protocol']}", *own]
    assert lines[len(own) + 1] == "protocol 0123456789" and len(lines) == 2 * len(own) + 2
    assert {line.split()[-1] for line in lines[len(own) + 4 :]} == {"7"}


def test_a_line_per_arm_says_what_it_chose_among_what_and_what_that_cost(tmp_path: Path) -> None:
    study = opened(tmp_path, TUNED.replace("ilsd, final", "ilsd, final, deep"))
    queue = filled(study)
    for losses in ((0.3, 0.2, 0.25), (0.1, 0.2, None), (None, None, None)):
        for loss in losses:
            queue.finish_tuning(queue.claim(), None if loss is None else {4: loss})
    head, _, ilsd, final, deep = tuning_lines(study, queue.arms(queue.trials()))
    arms = tuned_arms(study)
    flops = [sum(budget_flops(t.config) for t in arm.tuning) for arm in arms]
    assert head == (
        "chosen by held-out loss on a tenth of the training split, of the last exit, tuning seed 100, "
        f"0.25 of the budget; 9 tuning runs, {format_si(sum(flops))} training FLOPs"
    )
    values = [f"optim.lr={rate}: " for rate in (0.001, 0.002, 0.004)]
    for line, name, chosen, cost, losses, edge in (
        (ilsd, "ilsd", "optim.lr=0.002", flops[0], ("0.3", "0.2", "0.25"), False),
        (final, "final", "optim.lr=0.001", flops[1], ("0.1", "0.2", "diverged"), True),
        (deep, "deep", "none: all diverged", flops[2], ("diverged",) * 3, False),
    ):
        assert line.split()[0] == name and f" {chosen}  " in line and f" {format_si(cost)} " in line
        assert ", ".join(map("".join, zip(values, losses, strict=True))) in line
        assert line.endswith("; optim.lr at the edge of the grid") == edge


def test_a_tuning_run_that_arms_share_counts_once_and_one_that_was_retried_twice(tmp_path: Path) -> None:
    text = TUNED.replace("seeds", "  sampler.guidance: [1, 2]\nseeds", 1).replace("ilsd, final", "final")
    study = opened(tmp_path, text)
    queue = filled(study)
    assert len(queue.trials()) == 3
    queue.fail(queue.claim(), "killed by signal 9")
    queue.retry()
    for _ in range(3):
        queue.finish_tuning(queue.claim(), {4: 0.1})
    head, _, *rows = tuning_lines(study, queue.arms(queue.trials()))
    [cost] = {format_si(4 / 3 * sum(budget_flops(t.config) for t in arm.tuning)) for arm in tuned_arms(study)}
    assert head.endswith(f"; 3 tuning runs, {cost} training FLOPs")
    assert [row.split()[0] for row in rows] == ["final-guidance1", "final-guidance2"]
    assert all(f" {cost} " in row for row in rows)
    # In another order the trials are the same.
    assert len(filled(opened(tmp_path, text.replace("[1, 2]", "[2, 1]"))).trials()) == 4 + 4


def test_an_arm_without_a_choice_says_why(tmp_path: Path) -> None:
    study = opened(tmp_path, TUNED)
    queue = filled(study)
    queue.fail(queue.claim(), "killed by signal 9")
    _, _, ilsd, final = tuning_lines(study, queue.arms(queue.trials()))
    assert "no choice: a tuning run failed" in ilsd and "no choice yet" in final
    assert tuning_lines(opened(tmp_path), []) == []
