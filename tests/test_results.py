"""The table of rows: its columns, one row per measurement, and no mixed protocols."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fails

from eltlab.analysis.comparable_rows import comparable, one_protocol
from eltlab.common.errors import UserError
from eltlab.runs.result_table import COLUMNS, load
from eltlab.runs.row_files import append_rows, read_rows

# fmt: off
DOCUMENTED = [
    "kind", "run", "name", "created", "code", "device", "study", "trial", "seed", "data",
    "objective", "supervision", "model", "width", "depth", "unique_layers", "loops_train",
    "loops", "loop_schedule", "steps", "nfe", "guidance", "images_seen", "params_total",
    "params_blocks", "macs_per_pass", "macs_per_sample", "train_flops_total", "protocol",
    "samples", "fd_classifier", "accuracy", "fid", "kid", "precision", "recall", "fvd", "psnr",
    "train_seconds", "images_per_second", "peak_memory_bytes",
]
# fmt: on


def row(name: str, loops: int, seed: int, value: float, protocol: str = "a") -> dict:
    return {
        "kind": "eval",
        "run": f"{name}/{seed}",
        "name": name,
        "data": "digits",
        "objective": "diffusion",
        "seed": seed,
        "loops": loops,
        "loops_train": 1 if name == "twin" else 4,
        "unique_layers": 8 if name == "twin" else 2,
        "supervision": "final" if name == "twin" else "ilsd",
        "width": 64,
        "depth": 8,
        "steps": 16,
        "guidance": 1.0,
        "loop_schedule": "constant",
        "images_seen": 100,
        "params_total": 1000,
        "macs_per_sample": 10 * loops,
        "train_flops_total": 1000,
        "protocol": protocol,
        "protocol_text": json.dumps({"samples": 100, "extractor": protocol}),
        "samples": 100,
        "sample_seed": seed,
        "fd_classifier": value,
        "fd_halves": 3.0,
        "accuracy": 0.9,
        "cfg": {"optim.lr": 0.1},
    }


def test_the_documented_columns_are_present_in_order(tmp_path: Path) -> None:
    assert list(COLUMNS) == DOCUMENTED
    append_rows(tmp_path / "rows.jsonl", [row("elt", 1, 0, 5.0)])
    table = load(tmp_path)
    assert list(table.columns[: len(DOCUMENTED)]) == DOCUMENTED
    assert table["cfg.optim.lr"].iloc[0] == 0.1 and table["fid"].isna().all()


def test_an_empty_folder_gives_an_empty_table(tmp_path: Path) -> None:
    assert len(load(tmp_path)) == 0 and list(load(tmp_path).columns) == DOCUMENTED


def test_the_same_measurement_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert append_rows(path, [row("elt", 1, 0, 5.0), row("elt", 2, 0, 4.0)]) == 2
    assert append_rows(path, [row("elt", 2, 0, 9.0), row("elt", 2, 1, 4.0)]) == 1
    assert [r["fd_classifier"] for r in read_rows(path)] == [5.0, 4.0, 4.0]


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


def test_linked_runs_are_in_the_table_once(tmp_path: Path) -> None:
    """Old runs may have been moved to a second disk. A link to a parent does not cause a loop."""
    run = tmp_path / "disk" / "a" / "0123456789"
    append_rows(run / "rows.jsonl", [row("a", 1, 0, 2.0)])
    (run / "up").symlink_to(tmp_path / "disk")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "a").symlink_to(run.parent)
    (runs / "again").symlink_to(run)
    assert load(runs)["folder"].tolist() == [str(runs / "a" / "0123456789")]


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_rows(tmp_path / "x" / "rows.jsonl", [row("a", 1, 0, 2.0)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/x")) == 1


def test_two_protocols_are_refused_and_both_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row("elt", 1, 0, 5.0, "aaa"), row("elt", 1, 0, 5.0, "bbb")])
    with pytest.raises(UserError, match="aaa and bbb cannot be compared: extractor aaa against bbb"):
        one_protocol(load(path))


def anytime(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eltlab.analysis.anytime", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_figure_and_its_table_of_known_rows(tmp_path: Path) -> None:
    rows = [row("elt", n, seed, 10.0 / n + seed) for n in (1, 2, 4) for seed in (0, 1, 2)]
    rows += [row("twin", 1, seed, 2.0) for seed in (0, 1, 2)]
    append_rows(tmp_path / "rows.jsonl", rows)
    done = anytime(f"out={tmp_path / 'figure.png'}", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Mean 11 over seeds 10, 11, 12; the 95 % t interval is 4.303·1/√3 = 2.48.
    assert lines[1].split()[:2] == ["elt", "1"]
    assert "11.00" in lines[1] and "2.48" in lines[1]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_sampling_seeds_are_not_independent_runs(tmp_path: Path) -> None:
    rows = [{**row("elt", 1, seed, 10.0 + seed), "sample_seed": s} for seed in (0, 1) for s in (5, 6)]
    append_rows(tmp_path / "rows.jsonl", rows)
    done = anytime(f"out={tmp_path / 'figure.png'}", str(tmp_path / "rows.jsonl"))
    # Mean 10.5 of two seeds, not four: the t interval is 12.706·0.707/√2 = 6.35.
    assert done.returncode == 0 and "10.50" in done.stdout and "6.35" in done.stdout


def test_one_name_and_seed_is_one_run(tmp_path: Path) -> None:
    rows = [row("elt", 1, 0, 5.0), {**row("elt", 1, 0, 6.0), "run": "elt/other", "sample_seed": 9}]
    append_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="name elt, seed 0 stands for 2 runs"):
        comparable(load(tmp_path))


def test_the_figure_refuses_mixed_protocols(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row("elt", 1, 0, 5.0, "aaa"), row("elt", 2, 0, 5.0, "bbb")])
    done = anytime(f"out={tmp_path / 'figure.png'}", str(path))
    assert done.returncode == 2 and "cannot be compared" in done.stderr
    chosen = anytime(f"out={tmp_path / 'chosen.png'}", "protocol=aaa", str(path))
    assert chosen.returncode == 0, chosen.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "figure.png").exists()


def test_the_table_is_written_in_two_formats(tmp_path: Path) -> None:
    """The Parquet and CSV files of the committed rows equal the table that load returns."""
    import pandas as pd

    root = Path(__file__).parents[1]
    rows = [root / "analysis" / "data" / f"anytime_{name}.jsonl" for name in ("masked", "diffusion")]
    command = [sys.executable, "-m", "eltlab.analysis.table", f"out={tmp_path}/all.parquet"]
    subprocess.run([*command, *map(str, rows)], check=True, capture_output=True)
    expected = load(*rows)
    for table in (pd.read_parquet(tmp_path / "all.parquet"), pd.read_csv(tmp_path / "all.csv")):
        assert list(table.columns) == list(expected.columns) and len(table) == len(expected)
        for column in ("fd_classifier", "loops", "macs_per_sample", "cfg.optim.lr"):
            assert table[column].tolist() == pytest.approx(expected[column].tolist(), nan_ok=True)
        assert table["run"].tolist() == expected["run"].tolist()
        assert json.loads(table["cfg.evaluate_loops"].iloc[0]) == [1, 2, 3, 4]


def test_rows_contain_no_paths_of_the_machine_that_wrote_them() -> None:
    from conftest import tiny

    from eltlab.runs.row_files import recorded_config

    config = tiny("data=fashion_mnist", "data.root=/somewhere/fashion", "data.patch=4")
    assert recorded_config(config)["data.root"] == "fashion" and config.data.root == "/somewhere/fashion"
    top = Path(__file__).parents[1]
    for path in (*top.glob("analysis/data/*.jsonl"), *top.glob("benchmarks/*.jsonl")):
        for row in read_rows(path):
            assert not any(isinstance(v, str) and v.startswith("/") for v in row["cfg"].values())


def test_a_table_without_evaluations_is_refused(tmp_path):
    with pytest.raises(UserError, match="no evaluations among 0 rows"):
        comparable(load(tmp_path))


def test_rows_and_run_ids_agree_on_what_defines_a_model() -> None:
    """A key makes runs of one name differ exactly if it is in the run's hash."""
    from copy import deepcopy

    from conftest import tiny

    from eltlab.config.identity import defines, identity
    from eltlab.config.keys import flatten

    config = tiny()
    for key in flatten(config):
        other = deepcopy(config)
        *sections, last = key.split(".")
        holder = other
        for section in sections:
            holder = getattr(holder, section)
        setattr(holder, last, "another")
        assert (identity(other) != identity(config)) == defines(key), key
