"""The verb sample: the files that it writes, and those that it refuses to write."""

from pathlib import Path

import pytest
from PIL import Image
from support.command_line import typed_in
from support.sprite_runs import trained

from eltlab import sample
from eltlab.common.errors import UserError


def test_a_picture_is_not_written_over_a_folder(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "grid.png"
    out.mkdir()
    assert typed_in(sample, [f"run={trained_run}", "count=1", f"out={out}"], monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {out}: Is a directory"
    assert list(tmp_path.iterdir()) == [out] and list(out.iterdir()) == []


@pytest.mark.integration
def test_sample_writes_clips_as_gif_or_mp4(few_sprites, tmp_path, monkeypatch):
    run, _ = trained(few_sprites, tmp_path, "evaluate=false")
    monkeypatch.chdir(tmp_path)
    keys = [f"run={run.folder}", "count=4", "trainer.accelerator=cpu"]
    sample.main(keys)
    sample.main([*keys, "out=a.mp4"])
    assert Image.open("grid.gif").n_frames == 8 and Path("a.mp4").stat().st_size > 0
    with pytest.raises(UserError, match=r"clips are GIF or MP4 files; end the name in .gif or .mp4"):
        sample.main([*keys, "out=a.png"])


def test_the_average_is_chosen_by_its_length(trained_run: Path, tmp_path: Path) -> None:
    pictures = []
    for number, key in enumerate(["ema.length=0.05", "ema.length=0.1", "seed=0"]):
        out = tmp_path / f"{number}.png"
        sample.main([f"run={trained_run}", "count=4", f"out={out}", key])
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1] and pictures[0] == pictures[2]
    with pytest.raises(UserError, match="not a key of a trained run"):
        sample.main([f"run={trained_run}", "ema.lengths=[0.1]"])
