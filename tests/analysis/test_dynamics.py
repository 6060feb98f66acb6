"""What each loop does, read from the files next to the rows."""

from pathlib import Path

import pytest
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
    assert [text.get_text() for text in above.texts] == ["loop 2", "loop 1"]  # by height
    with pytest.raises(UserError, match="arms=elastik: did you mean elastic"):
        dynamics.draw(table(dynamics_rows), ["elastik"])


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
