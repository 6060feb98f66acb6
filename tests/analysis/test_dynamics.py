"""What each loop does, read from the files next to the rows."""

from pathlib import Path

import pytest
from matplotlib.legend import Legend
from support.diagnostic_files import run
from support.made_up_rows import arm, table, unique

from eltlab.analysis import dynamics
from eltlab.common.errors import UserError


@pytest.fixture
def dynamics_rows(tmp_path: Path) -> list[dict]:
    """The rows of two seeds, with their files."""
    return [*run(tmp_path / "a", 0, 1.0), *run(tmp_path / "b", 1, 3.0)]


def test_updates_are_means_over_seeds_of_the_rows_protocol(dynamics_rows: list[dict]) -> None:
    found = dynamics.relative_updates(table(dynamics_rows)).set_index(["loops", "step", "loop"])["update"]
    assert found.to_dict() == {(2, 0, 1): 2.0, (2, 0, 2): 1.0, (2, 1, 1): 2.0, (2, 1, 2): 1.0}


def test_updates_are_those_of_the_reported_setting(dynamics_rows: list[dict]) -> None:
    """Lines of other settings, in a file that names them, are not averaged."""
    path = Path(dynamics_rows[0]["folder"]) / "dynamics.csv"
    head, *lines = path.read_text().splitlines()
    own = [f"{line},1.0,8" for line in lines]
    other = [f"aaaa,9,0,2,{step},{loop},999,2.0,8" for step in (0, 1) for loop in (1, 2)]
    path.write_text("\n".join([f"{head},guidance,steps", *own, *other]))
    found = dynamics.relative_updates(table(dynamics_rows[:2]))
    assert found["update"].tolist() == [1.0, 0.5, 1.0, 0.5]


def test_exit_losses_are_means_over_seeds_and_levels(dynamics_rows: list[dict]) -> None:
    found = dynamics.exit_losses(table(dynamics_rows)).set_index(["images", "exit"])["loss"]
    assert found.to_dict() == {(8, 1): 3.0, (8, 2): 2.0}


def test_the_figure_has_one_column_per_arm_and_one_line_per_loop(dynamics_rows: list[dict]) -> None:
    above, below = dynamics.draw(table(dynamics_rows)).axes
    assert [list(line.get_ydata()) for line in above.lines] == [[2.0, 2.0], [1.0, 1.0]]
    assert [list(line.get_ydata()) for line in below.lines] == [[3.0], [2.0]]
    names = [each for each in above.get_children() if isinstance(each, Legend)]
    assert [name.get_texts()[0].get_text() for name in names] == ["loop 2", "loop 1"]  # by height
    with pytest.raises(UserError, match="arms=elastik: did you mean elastic"):
        dynamics.draw(table(dynamics_rows), ["elastik"])


@pytest.mark.integration
def test_of_many_arms_those_with_most_loops_of_each_kind_are_drawn_and_the_others_named(
    tmp_path: Path,
) -> None:
    rows = []
    for kind in ("ilsd", "final", "deep"):
        for n in (2, 1, 3):  # looped twice, with names of which the last has one loop more
            more = {"name": f"{kind}-{n}", "run": f"{kind}-{n}", "supervision": kind}
            own = run(tmp_path / kind / str(n), 0, 1.0)
            rows += [each | more | {"loops_train": 2 + (n == 3)} for each in own]
    rows += unique("twin", 4, 1.0)
    for path in tmp_path.rglob("3/dynamics.csv"):
        path.write_text(path.read_text().replace("aaaa,9,0,2,", "aaaa,9,0,3,"))
    figure = dynamics.draw(table(rows))
    drawn = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert drawn == ["ilsd-2", "ilsd-3", "final-3", "deep-3"]
    text = figure._supxlabel.get_text().replace("\n", " ")
    assert "Not drawn, unless given as arms=: deep-1, deep-2, final-1, final-2, ilsd-1" in text
    assert "Without loops or without dynamics.csv: twin" in text
    assert len(dynamics.draw(table(rows), ["deep-1"]).axes) == 2


def test_missing_run_files_are_reported(dynamics_rows: list[dict]) -> None:
    with pytest.raises(UserError, match=r"no dynamics\.csv next to these rows"):
        dynamics.draw(table(arm("a", {4: 1.0})))
    twin = unique("twin", 4, 1.0, folder=dynamics_rows[0]["folder"], images_seen=9)
    with pytest.raises(UserError, match="no arm of these rows loops"):
        dynamics.draw(table(twin))


def test_a_damaged_file_is_named(dynamics_rows: list[dict]) -> None:
    (Path(dynamics_rows[0]["folder"]) / "dynamics.csv").write_text("")
    with pytest.raises(UserError, match=r"a/dynamics\.csv: damaged"):
        dynamics.draw(table(dynamics_rows))
