"""Rows: the columns of each kind, and the files that hold them."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.encoded_sets import tokenizer_weights
from support.errors import fails
from support.made_up_rows import row
from support.paths import ROOT
from support.tiny_run import TINY, tiny

from eltlab import bench, encode, fit
from eltlab.common.errors import UserError
from eltlab.runs.result_table import load
from eltlab.runs.row_files import SETTINGS, append_rows, read_rows, recorded_config, setting_columns


def test_the_same_measurement_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert append_rows(path, [row("elt", 1, 5.0), row("elt", 2, 4.0)]) == 2
    assert append_rows(path, [row("elt", 2, 9.0), row("elt", 2, 4.0, seed=1)]) == 1
    assert [r["heldout_loss"] for r in read_rows(path)] == [5.0, 4.0, 4.0]


def test_settings_are_part_of_a_measurement(tmp_path: Path) -> None:
    path, settings = tmp_path / "rows.jsonl", ("guidance", "guidance_schedule", "steps", "temperature")
    rows = [row("elt", 1, 5.0, **{column: 7}) for column in (*settings, "ema_length")]
    for each in (row("elt", 1, 5.0), *rows):
        assert append_rows(path, [each]) == 1
    assert append_rows(path, rows) == 0


def test_the_loops_that_a_schedule_ran_are_a_result_and_no_setting(tmp_path: Path) -> None:
    """With halting their mean may differ between two measurements of the same thing."""
    path = tmp_path / "rows.jsonl"
    for loops, halting, written in ((2.3, 0.1, 1), (2.4, 0.1, 0), (2.3, 0.2, 1)):
        rows = [row("elt", loops, 5.0, loop_schedule=f"4 halting {halting}")]
        assert append_rows(path, rows) == written


def test_a_sampler_without_temperature_has_none() -> None:
    masked, diffusion = (
        setting_columns(tiny("objective=masked")),
        setting_columns(tiny("objective=diffusion")),
    )
    assert masked.keys() == diffusion.keys() == SETTINGS.keys()
    assert masked["temperature"] == 0.5 and diffusion["temperature"] is None
    assert masked["steps"] == diffusion["steps"] == 4


def test_a_torn_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"kind": "tokenizer"}\n{"kind": "ev')
    with pytest.raises(UserError, match="line 2: not a row"):
        load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_an_evaluation_without_required_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"kind": "tokenizer"}\n{"kind": "eval", "name": "x"}\n')
    message = fails(load, tmp_path)
    assert message.startswith(f"{tmp_path}/rows.jsonl, line 2: an evaluation without run, seed, data, ")


def test_rows_contain_no_paths_of_the_machine_that_wrote_them() -> None:
    config = tiny("data=fashion_mnist", "data.root=/somewhere/fashion", "data.patch=4")
    assert recorded_config(config)["data.root"] == "fashion" and config.data.root == "/somewhere/fashion"
    file = "metrics.statistics=/somewhere/imagenet.npz"
    assert recorded_config(tiny("metrics.extractor=inception", file))["metrics.statistics"] == "imagenet.npz"
    for path in (*ROOT.glob("analysis/data/*.jsonl"), *ROOT.glob("benchmarks/*.jsonl")):
        for committed in read_rows(path):
            assert not any(isinstance(v, str) and v.startswith("/") for v in committed["cfg"].values())


MACHINE = {"kind", "created", "code", "source", "device", "name", "data", "cfg"}
COST = {
    *("unique_layers", "depth", "width", "tokens", "params_total", "params_blocks"),
    *("params_embedding", "params_head", "train_flops_per_image"),
    *("memory_training_bytes", "memory_inference_bytes"),
}
MODEL = MACHINE | COST | {"seed", "objective", "supervision", "model", "loops_train"}
RUN = MODEL | {
    *("run", "study", "trial", "tuned", "tuned_on", "evaluated_code", "evaluated_source", "evaluated_device"),
    "images_seen",
    *("train_seconds", "images_per_second", "peak_memory_bytes"),
    *("samples", "protocol", "protocol_text", "split", "fd_classifier", "fd_classifier_inf", "fd_ideal"),
    *("kd_classifier", "kd_classifier_se", "memorised", "accuracy"),
}
SAMPLING = {
    *("steps", "guidance", "nfe", "macs_per_pass", "macs_per_pass_trunk"),
    *("macs_per_pass_attention", "macs_per_sample", "macs_per_sample_trunk", "flops_per_sample"),
}
TIMED = MODEL | {
    *("measure", "call", "precision", "loops", "repeats", "warmup", "batch_size"),
    *("seconds", "seconds_q25", "seconds_q75", "images_per_second", "flops_per_second", "mfu"),
    *("ratio_to_twin", "ratio_to_twin_q25", "ratio_to_twin_q75", "matmul_flops_per_second"),
}


@pytest.mark.integration
def test_an_evaluation_and_its_tokenizer_have_their_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr("eltlab.runs.row_files.timestamp", lambda timespec: next(ticks))
    fit.main([*TINY, "objective=masked", "trainer.grids=0", f"runs_dir={tmp_path}"])
    [path] = tmp_path.rglob("rows.jsonl")
    tokenizer, *evaluations = read_rows(path)
    assert tokenizer.keys() == RUN | {"psnr"}
    expected = RUN | SAMPLING
    expected |= {"loops", "loop_schedule", "sample_seed", "train_flops_total"}
    expected |= {"guidance_schedule", "temperature", "temperature_range", "confidence_noise", "ema_length"}
    expected |= {"heldout_loss", "heldout_loss_se", "train_loss", "heldout_protocol"}
    assert evaluations and all(row.keys() == expected for row in evaluations)
    # Each row has its own time, not that of the whole evaluation.
    times = [row["created"] for row in evaluations]
    assert len(set(times)) == 4 and times == sorted(times)


def test_a_benchmark_has_its_columns(tmp_path: Path) -> None:
    out = tmp_path / "bench.jsonl"
    bench.main([*TINY, "loops=2", "repeats=1", "warmup=1", "batches=[1]", f"out={out}"])
    parts = {f"{part}_seconds" for part in ("data", "forward", "backward", "optimizer")}
    ratios = {f"ratio_to_vanilla{end}" for end in ("", "_q25", "_q75")}
    expected = {
        "train": TIMED | parts | ratios | {"peak_memory_bytes"},
        "sample": TIMED | SAMPLING | {"halting"},
    }
    rows = read_rows(out)
    assert {row["measure"] for row in rows} == expected.keys()
    for timing in rows:
        assert timing.keys() == expected[timing["measure"]]
        assert timing["created"].count(".") == 1  # microseconds tell rows apart


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise as PNG files, 12 training and 4 test images of each of two classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, images in (("train", 12), ("test", 4)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for n in range(images):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{n}.png")
    return root


@pytest.mark.integration
def test_an_encoded_set_has_its_columns(images: Path, tmp_path: Path) -> None:
    weights, out = tokenizer_weights(tmp_path / "weights") / "taesd", tmp_path / "set"
    keys = [f"data.root={images}", "data.size=16", "data.workers=0", "tokenizer=kmeans", "tokenizer.codes=16"]
    encode.main([*keys, f"tokenizer.weights={weights}", "metrics.samples=20", f"out={out}"])
    [floor] = read_rows(out / "rows.jsonl")
    assert floor.keys() == MACHINE | {
        *("run", "tokens", "images_per_second", "samples", "protocol", "protocol_text"),
        *("psnr", "split", "fd_classifier", "fd_classifier_inf", "fd_ideal"),
        *("kd_classifier", "kd_classifier_se", "memorised", "accuracy"),
    }
