"""A picture of samples has a block of rows per loop count, of the same noise."""

from pathlib import Path

import torch
from support.command_line import typed_in

from eltlab import sample


def test_sample_draws_a_block_of_rows_per_loop_count(trained_run: Path, tmp_path: Path, monkeypatch) -> None:
    saved = []

    def save_grid(path: Path, rows: list, names: list[str]) -> None:
        saved.append((rows, names))

    monkeypatch.setattr("eltlab.common.image_grids.save_grid", save_grid)
    common = [f"run={trained_run}", "count=4", f"out={tmp_path / 'grid.png'}"]
    for loops in ("[1,2,4]", "2", "[[2,2,1,1],4to1]"):
        assert typed_in(sample, [*common, f"loops={loops}"], monkeypatch) == 0
    (several, names), (single, no_names), (_, schedules) = saved
    assert names == ["1", "", "2", "", "4", ""] and no_names == ["", ""]
    assert schedules == ["[2, 2, 1, 1]", "", "4to1", ""]
    # The block for two loops shows the same pictures as two loops alone.
    assert all(torch.equal(*pair) for pair in zip(several[2:4], single, strict=True))
