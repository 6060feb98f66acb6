"""Every kind of row has exactly the columns that its readers and the committed rows rely on."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from sets import tokenizer_weights

from eltlab import bench, encode, fit
from eltlab.runs.row_files import read_rows

MACHINE = {"kind", "created", "code", "device", "name", "data", "cfg"}
COST = {
    *("unique_layers", "depth", "width", "tokens", "params_total", "params_blocks"),
    *("params_embedding", "params_head", "train_flops_per_image"),
    *("memory_training_bytes", "memory_inference_bytes"),
}
MODEL = MACHINE | COST | {"seed", "objective", "supervision", "model", "loops_train"}
RUN = MODEL | {
    *("run", "study", "trial", "evaluated_code", "evaluated_device", "images_seen"),
    *("train_seconds", "images_per_second", "peak_memory_bytes"),
    *("samples", "protocol", "protocol_text", "fd_classifier", "accuracy"),
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


def test_an_evaluation_and_its_tokenizer_have_their_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eltlab.evaluation.evaluate.timestamp", map(str, count()).__next__)
    fit.main([*TINY, "objective=masked", "trainer.grids=0", f"runs_dir={tmp_path}"])
    [path] = tmp_path.rglob("rows.jsonl")
    tokenizer, *evaluations = read_rows(path)
    assert tokenizer.keys() == RUN | {"psnr"}
    expected = RUN | SAMPLING
    expected |= {"loops", "loop_schedule", "sample_seed", "fd_halves", "train_flops_total"}
    assert evaluations and all(row.keys() == expected for row in evaluations)
    # Each row has its own time, not that of the whole evaluation.
    assert [row["created"] for row in evaluations] == ["0", "1", "2", "3"]


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
    for row in rows:
        assert row.keys() == expected[row["measure"]]
        assert row["created"].count(".") == 1  # microseconds tell rows apart


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


def test_an_encoded_set_has_its_columns(images: Path, tmp_path: Path) -> None:
    weights, out = tokenizer_weights(tmp_path / "weights") / "taesd", tmp_path / "set"
    keys = [f"data.root={images}", "data.size=16", "tokenizer=kmeans", "tokenizer.codes=16"]
    encode.main([*keys, f"tokenizer.weights={weights}", "metrics.samples=20", f"out={out}"])
    [row] = read_rows(out / "rows.jsonl")
    assert row.keys() == MACHINE | {
        *("run", "tokens", "images_per_second", "samples", "protocol", "protocol_text"),
        *("psnr", "fd_classifier", "accuracy"),
    }
