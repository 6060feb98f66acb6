"""The benchmark takes the steps of fit, interleaves its models, and writes one row per measurement."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median

import pytest
import torch
from conftest import TINY, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eltlab import bench, fit
from eltlab.analysis.comparable_rows import comparable
from eltlab.common.errors import UserError
from eltlab.common.seeds import slice_of_this_process
from eltlab.config.cost.flops import train_flops_per_image
from eltlab.config.network_shape import network
from eltlab.config.schema import Spent
from eltlab.data.build import build_data
from eltlab.runs.result_table import load
from eltlab.runs.row_files import read_rows
from eltlab.training.timing import (
    PHASES,
    TimedModel,
    interleave,
    measure_matmul_rate,
    measure_rates,
)

CPU = torch.device("cpu")


def model(config) -> TimedModel:
    batches = build_data(config).batches(config, 0, CPU, slice_of_this_process(config.trainer.accumulate))
    return TimedModel(config, CPU, "32-true", batches)


@pytest.mark.parametrize(("objective", "micro_batches"), [("masked", 1), ("masked", 4), ("diffusion", 1)])
def test_its_steps_are_those_of_fit(tmp_path, objective, micro_batches):
    """Eight steps of each give the same weights, averages and moments, bit for bit."""
    overrides = [f"objective={objective}", "optim.warmup_images=32", "model.dropout=0.1"]
    overrides.append(f"trainer.accumulate={micro_batches}")
    fit.main([*TINY, *overrides, "evaluate=false", f"runs_dir={tmp_path}"])
    [file] = tmp_path.rglob("last.ckpt")
    trained = torch.load(file, weights_only=True)
    stepped = model(tiny(*overrides))
    for _ in range(8):
        assert list(stepped.step().phases) == list(PHASES)
    state = stepped.module.state_dict()
    assert state.keys() == trained["state_dict"].keys()
    assert all(torch.equal(state[key], value) for key, value in trained["state_dict"].items())
    moments = stepped.optimizer.state_dict()["state"]
    for n, values in trained["optimizer_states"][0]["state"].items():
        assert all(torch.equal(moments[n][key], value) for key, value in values.items())


def test_actions_are_interleaved_with_every_second_round_reversed():
    order: list[str] = []
    rounds: list[int] = []

    def action(name):
        return lambda: order.append(name) or (name, len(order))

    taken = interleave([action("a"), action("b")], 3, 1, rounds.append)
    assert "".join(order) == "abbaabba" and rounds == [1, 2, 3, 4]
    # The values of each action in the order of the rounds, without the warm-up.
    assert taken == [[("a", 4), ("a", 5), ("a", 8)], [("b", 3), ("b", 6), ("b", 7)]]


SMALL = [*TINY, "sampler.steps=2", "repeats=3", "warmup=1", "batches=[1,3]"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The output file of one call of bench, its rows, and the timed steps of each model behind them."""
    out, taken = tmp_path_factory.mktemp("bench") / "rows.jsonl", []

    def recording(actions, *rest):
        found = interleave(actions, *rest)
        taken.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eltlab.training.benchmark.interleave", recording)
        bench.main([*SMALL, "loop_counts=[2,4]", f"out={out}"])
    return out, read_rows(out), taken[0][:-1]  # the last action is the matrix product


@pytest.fixture(scope="module")
def rows(measured):
    return measured[:2]


def test_one_row_per_measurement(rows):
    _, found = rows
    train = [row for row in found if row["measure"] == "train"]
    assert [(r["unique_layers"], r["loops"], r["supervision"]) for r in train] == [
        (4, 1, "final"),
        (2, 2, "final"),
        (2, 2, "ilsd"),
        (1, 4, "final"),
        (1, 4, "ilsd"),
    ]
    sample = [row for row in found if row["measure"] == "sample"]
    assert [(r["batch_size"], r["loops_train"], r["loops"]) for r in sample] == [
        (batch, trained, drawn)
        for batch in (1, 3)
        for trained, drawn in ((1, 1), (2, 2), (2, 1), (4, 4), (4, 1))
    ]
    assert len(found) == len(train) + len(sample)
    assert {row["kind"] for row in found} == {"bench"}


def test_a_row_says_what_was_measured_and_how(rows):
    for row in rows[1]:
        assert row["repeats"] == 3 and row["warmup"] == 1 and row["device"] and row["precision"]
        assert row["seconds_q25"] <= row["seconds"] <= row["seconds_q75"]
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["seconds"])
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / row["matmul_flops_per_second"])
        assert row["call"] == rows[1][0]["call"]
        assert json.loads(json.dumps(row)) == row
        if row["measure"] == "train":
            flops = row["train_flops_per_image"] * row["batch_size"] / row["seconds_q75"]
            most = row["train_flops_per_image"] * row["batch_size"] / row["seconds_q25"]
            assert 0.5 * flops <= row["flops_per_second"] <= 2 * most
        else:
            flops = row["flops_per_sample"] * row["images_per_second"]
            assert row["flops_per_second"] == pytest.approx(flops) and row["steps"] == 2


def test_the_phases_of_a_step_add_up_to_it(measured):
    """In every step; a row holds the medians of the phases and of the steps."""
    train = [row for row in measured[1] if row["measure"] == "train"]
    for row, steps in zip(train, measured[2], strict=True):
        assert len(steps) == row["repeats"]
        for step in steps:
            assert list(step.phases) == list(PHASES) and min(step.phases.values()) > 0
        assert row["seconds"] == pytest.approx(median(sum(s.phases.values()) for s in steps))
        for part in PHASES:
            assert row[f"{part}_seconds"] == pytest.approx(median(s.phases[part] for s in steps))


def test_ratios_are_to_the_twin_and_to_the_vanilla_loop(rows):
    train = [row for row in rows[1] if row["measure"] == "train"]
    assert train[0]["ratio_to_twin"] == 1
    for row in train:
        assert row["ratio_to_twin"] > 0
        assert (row["ratio_to_vanilla"] == 1) == (row["supervision"] == "final")


def test_peak_memory_is_what_the_formula_says(rows):
    for row in rows[1]:
        if row["measure"] == "train":
            assert row["peak_memory_bytes"] == pytest.approx(row["memory_training_bytes"], rel=0.15)


def test_a_second_call_appends_its_rows(rows, tmp_path):
    out = tmp_path / "rows.jsonl"
    for _ in range(2):
        bench.main([*SMALL, "loop_counts=[]", "batches=[]", f"out={out}"])
    assert len(read_rows(out)) == 2


def test_rows_of_the_bench_are_loaded_and_never_compared_with_measured_samples(rows, tmp_path):
    fit.main([*TINY, "evaluate_loops=[1]", f"runs_dir={tmp_path}"])
    table = load(rows[0], tmp_path)
    assert (table["kind"] == "bench").sum() == len(rows[1])
    assert set(comparable(table)["kind"]) == {"eval"}


def test_by_default_rows_go_where_tables_find_them(tmp_path):
    bench.main([*SMALL, "loops=1", "batches=[]", f"runs_dir={tmp_path}"])
    assert list(load(tmp_path)["measure"]) == ["train"]


def test_recompute_is_measured_too(tmp_path):
    out = tmp_path / "rows.jsonl"
    large = ["model.width=64", "batch_size=64", "loop_counts=[4]", "batches=[]", f"out={out}"]
    for flag in ("false", "true"):
        bench.main([*SMALL, *large, f"trainer.recompute={flag}", "supervision=final"])
    plain, again = (row for row in read_rows(out) if row["loops"] == 4)
    assert again["peak_memory_bytes"] < 0.7 * plain["peak_memory_bytes"]
    assert again["train_flops_per_image"] > 1.2 * plain["train_flops_per_image"]
    # Recomputation counts as work of the machine, but not as utilisation.
    assert again["mfu"] * 1.2 < again["flops_per_second"] / again["matmul_flops_per_second"]


def test_all_models_run_the_same_number_of_layers_per_pass(tmp_path):
    out = tmp_path / "rows.jsonl"
    overrides = ["unique_layers=3", "loops=4", "loop_counts=[4,6]", "batches=[]", f"out={out}"]
    bench.main([*SMALL, *overrides])
    assert {row["depth"] for row in read_rows(out)} == {12}
    assert [row["unique_layers"] for row in read_rows(out)] == [12, 3, 3, 2, 2]


def test_a_step_of_random_depth_counts_its_own_flops():
    config = tiny("supervision=random_depth", "model.inject_input=true")
    stepped, net = model(config), network(config)
    for step in range(8):
        depth = max(stepped.module.supervision.exits(step))
        worth = train_flops_per_image(net, Spent({depth: 1.0}, 1)) * config.batch_size
        assert stepped.step().flops == worth
    assert max(stepped.module.supervision.exits(stepped.next_deepest_step())) == 4


def test_samples_that_halt_are_counted_by_what_they_spent(tmp_path):
    out = tmp_path / "rows.jsonl"
    bench.main([*SMALL, "loop_counts=[4]", "sampler.halting=1e9", f"out={out}"])
    drawn = [row for row in read_rows(out) if row["measure"] == "sample" and row["loops_train"] == 4]
    assert len({row["macs_per_sample"] for row in drawn}) == 1  # one loop, whatever was requested


def test_what_it_counts_is_what_a_training_step_of_fit_computes():
    """FlopCounterMode over training_step and backward, with objective, supervision and loss."""
    for case in product(
        ("masked", "diffusion"), ("final", "ilsd", "deep", "random_depth"), ("true", "false")
    ):
        objective, supervision, recompute = case
        config = tiny(f"objective={objective}", f"supervision={supervision}", "model.dropout=0")
        config.trainer.recompute = recompute == "true"
        stepped = model(config)
        exits = stepped.module.supervision.exits(0)
        # On the CPU torch counts attention as zero unless it is computed as plain matrix products.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            stepped.module.training_step(next(stepped.batches), 0).backward()
        assert counter.get_total_flops() == stepped.flops(exits, config.trainer.recompute), case


def test_rates_are_flops_per_second():
    [(train, sample)] = measure_rates([tiny()], "cpu", "32-true", repeats=1)
    assert 1e5 < train < 1e15 and 1e5 < sample < 1e15
    assert 1e8 < measure_matmul_rate(CPU, "32-true") < 1e15


# --- the committed rows ---------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def test_the_readme_has_the_paragraph_that_the_rows_make(tmp_path):
    """`make readme` writes it."""
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text())
    command = [sys.executable, "-m", "eltlab.analysis.performance", f"into={page}"]
    subprocess.run([*command, ROOT / "benchmarks" / "rows.jsonl"], check=True)
    assert page.read_text() == (ROOT / "README.md").read_text()
    assert page.read_text().count("÷ twin") >= 3


def test_the_rows_hold_tiny_and_base_width_at_equal_depth():
    rows = [row for row in read_rows(ROOT / "benchmarks" / "rows.jsonl") if row["kind"] == "bench"]
    train = {(row["width"], row["unique_layers"], row["loops"], row["supervision"]) for row in rows}
    for width in (64, 768):
        for loops in (2, 4, 12):
            assert {(width, 12 // loops, loops, name) for name in ("final", "ilsd")} <= train
        assert (width, 12, 1, "final") in train
    assert {row["depth"] for row in rows} == {12} and all(row["device"] for row in rows)
    # The claims of docs/results.md.
    train = [row for row in rows if row["measure"] == "train"]
    for row in train:
        assert row["peak_memory_bytes"] == pytest.approx(row["memory_training_bytes"], rel=0.15)
        if row["supervision"] == "ilsd":
            assert 0.97 <= round(row["ratio_to_vanilla"], 2) <= 1.05
        elif row["loops"] > 1:
            assert 0.85 <= round(row["ratio_to_twin"], 2) <= 0.99
    peak = {(r["width"], r["loops"], r["supervision"]): r["peak_memory_bytes"] for r in train}
    assert 6.5 < peak[768, 1, "final"] / peak[768, 12, "final"] < 7.5
    one_of_twelve = {64: (0.17, 0.18), 768: (0.10, 0.10)}
    for row in rows:
        if row["measure"] == "sample" and row["loops_train"] > 1:
            low, high = (0.83, 1.01)
            if row["loops"] == 1:
                low, high = one_of_twelve[row["width"]] if row["loops_train"] == 12 else (0, 0.6)
            assert low <= round(row["ratio_to_twin"], 2) <= high


def test_missing_rows_are_reported(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    page = tmp_path / "page.md"
    page.write_text("<!-- performance --><!-- /performance -->")
    command = [sys.executable, "-m", "eltlab.analysis.performance", f"into={page}"]
    done = subprocess.run([*command, tmp_path / "rows.jsonl"], capture_output=True, text=True)
    assert done.returncode == 2 and "make bench" in done.stderr


def test_rows_without_samples_make_no_paragraph(tmp_path):
    out, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    bench.main([*SMALL, "loop_counts=[4]", "batches=[]", f"out={out}"])
    page.write_text("<!-- performance --><!-- /performance -->")
    command = [sys.executable, "-m", "eltlab.analysis.performance", f"into={page}", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "measured both ILSD and sampling" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("repeats=0", "repeats=0: must be at least 1"),
        ("loop_counts=[3]", "loop_counts=3 does not divide the layers of a pass=8"),
        ("loop_counts=few", "loop_counts=few: give counts of at least 1, e.g. loop_counts="),
        ("sampler.loops=2", "bench samples at the loop counts of loop_counts"),
        ("out=/proc/nope/rows.jsonl", "out=/proc/nope/rows.jsonl: cannot be written"),
        ("out=/tmp", "out=/tmp: cannot be written"),
        ("loop_counts=[0]", "give counts of at least 1"),
        ("batches=[0]", "give counts of at least 1"),
        ("model=elt_g batch_size=4096", "give fewer loop_counts or a smaller batch_size"),
        ("repeat=3", "unknown key repeat=3"),
        ("trainer.devices=2", "trainer.devices=2 trainer.nodes=1: bench times one device"),
    ],
)
def test_mistakes_are_reported(wrong, said, tmp_path):
    with pytest.raises(UserError, match=said):
        bench.main([*wrong.split(), f"runs_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())
