"""The floor, which is what the tokenizer alone loses, is measured once per set."""

import json

import pytest
from support.encoded_sets import make, on

from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit


@pytest.mark.integration
def test_the_floor_is_measured_once_for_the_set_and_its_runs(photo_folder, weights_folder, tmp_path) -> None:
    out = tmp_path / "set"
    measured = "evaluate=true", "metrics.extractor=classifier"
    make(photo_folder, weights_folder, out, *measured, tokenizer="kmeans")
    [row] = read_rows(out / "rows.jsonl")
    assert row["kind"] == "tokenizer" and row["samples"] == 12 and row["name"] == "kmeans"
    assert row["fd_classifier"] > 0 and row["psnr"] > 0 and row["tokens"] == 64
    config = on(
        out,
        *("metrics.samples=12", f"runs_dir={tmp_path}/runs", "loops=2", "evaluate_loops=[2]"),
        *("trainer.grids=1", "sampler.steps=2"),
        kind="tokens",
    )
    fit(config)
    floor, measured = read_rows(Run.of(config).rows)
    for key in ("protocol", "fd_classifier", "psnr"):
        assert floor[key] == row[key]
    reference = json.loads(measured["protocol_text"])["reference"]
    assert reference == json.loads(row["protocol_text"])["reference"]
    assert reference.startswith("images/train-36-")
