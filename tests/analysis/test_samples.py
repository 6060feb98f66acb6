"""The picture of samples: one row per arm, one column per loop count."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.made_up_rows import arm, row, table, unique

from eltlab.analysis import samples
from eltlab.common.errors import UserError


def tiles(folder: Path, counts: dict[int, int], protocol: str = "aaaa") -> dict[str, str]:
    """Writes a grey tile per loop count as evaluate does; returns the column for the rows."""
    place = folder / "samples" / protocol
    place.mkdir(parents=True, exist_ok=True)
    for loops, grey in counts.items():
        Image.new("L", (8, 4), grey).save(place / f"loops_{loops:03}.png")
    return {"folder": str(folder)}


def test_tiles_are_those_of_the_first_seed_and_of_constant_loop_counts(tmp_path: Path) -> None:
    rows = [
        *arm("elastic", {1: 40.0, 4: 10.0}, seed=2, **tiles(tmp_path / "a", {1: 10, 4: 40, 8: 80})),
        *arm("elastic", {1: 40.0, 4: 10.0}, seed=3, **tiles(tmp_path / "b", {1: 11, 4: 41})),
        *unique("twin", 8, 8.0, seed=2, **tiles(tmp_path / "c", {1: 100})),
        row("elastic", 8, 9.0, seed=2, loop_schedule="8to1", folder=str(tmp_path / "a")),
    ]
    found = samples.find_tiles(table(rows))
    assert {name: sorted(pictures) for name, pictures in found.items()} == {"elastic": [1, 4], "twin": [1]}
    assert {path.parts[-4] for path in found["elastic"].values()} == {"a"}


def test_tiles_are_those_of_the_chosen_protocol(tmp_path: Path) -> None:
    more = tiles(tmp_path / "a", {4: 10}) | tiles(tmp_path / "a", {4: 20}, "bbbb")
    rows = table([row("a", 4, 1.0, **more), row("a", 4, 2.0, protocol="bbbb", sample_seed=5, **more)])
    [path] = samples.find_tiles(rows, "bbbb")["a"].values()
    assert path.parent.name == "bbbb"


def test_the_picture_is_that_of_the_reported_setting(tmp_path: Path) -> None:
    """The run's own guidance is 1: only pictures of other settings name them."""
    place = tmp_path / "samples" / "aaaa"
    place.mkdir(parents=True)
    for name in ("", "_guidance_2.0", "_guidance_2.0_steps_4", "_steps_4", "_halting_0.1"):
        (place / f"loops_004{name}.png").touch()
    for setting, name in (({"guidance": 1.0}, ""), ({"guidance": 2.0}, "_guidance_2.0"),
                          ({"guidance": 2.0, "steps": 4}, "_guidance_2.0_steps_4"),
                          ({"steps": 4.0}, "_steps_4")):  # fmt: skip
        [path] = samples.find_tiles(table([row("a", 4, 1.0, folder=str(tmp_path), **setting)]))["a"].values()
        assert path.name == f"loops_004{name}.png"


def test_each_cell_shows_the_tile_of_its_arm_and_loop_count(tmp_path: Path) -> None:
    rows = table([
        *arm("elastic", {1: 40.0, 2: 20.0, 4: 10.0}, **tiles(tmp_path / "e", {1: 20, 2: 40, 4: 80})),
        *arm("vanilla", {2: 90.0, 4: 9.0}, supervision="final", **tiles(tmp_path / "v", {2: 41, 4: 81})),
    ])  # fmt: skip
    panels = samples.draw(rows).axes
    assert [panel.get_title() for panel in panels[:3]] == ["1 loop", "2 loops", "4 loops"]
    assert [panels[n].get_ylabel() for n in (0, 3)] == ["elastic", "vanilla"]
    greys = [[round(255 * float(np.mean(image.get_array()))) for image in p.get_images()] for p in panels]
    assert greys == [[20], [40], [80], [], [41], [81]]  # the vanilla loop has no tile of one loop


def test_rows_without_tiles_are_refused() -> None:
    with pytest.raises(UserError, match="no samples next to these rows; give the folders of evaluated runs"):
        samples.draw(table(arm("a", {4: 1.0})))
