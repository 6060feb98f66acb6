"""What plan prints: the bill, that of the twins, times, and what would make it fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from eltlab import plan
from eltlab.common import machine_facts
from eltlab.common.errors import UserError
from eltlab.common.package_info import package_folder
from eltlab.common.text import format_bytes, format_duration, format_si, format_table
from eltlab.config.cost import measured_rates
from eltlab.config.cost.bill import bill
from eltlab.config.cost.flops import macs_per_pass, macs_trunk, params_blocks, train_flops
from eltlab.config.cost.memory import training_memory
from eltlab.config.cost.twins import TOLERANCE, count_params, iso_params, twin
from eltlab.config.network_shape import network
from eltlab.config.parsing import options_of
from eltlab.model.backbone import build_backbone
from eltlab.runs.compose_config import compose

KEYS = """unique_layers loops depth width tokens params_total params_blocks params_embedding
    params_head macs_per_pass macs_per_pass_trunk macs_per_pass_attention nfe macs_per_sample
    macs_per_sample_trunk flops_per_sample train_flops_per_image train_flops_total
    memory_training_bytes memory_inference_bytes""".split()  # noqa: SIM905


def planned(capsys, *overrides: str) -> dict:
    """What format=json prints; nothing else is on stdout."""
    plan.main([*overrides, "format=json"])
    return json.loads(capsys.readouterr().out)


def lines(capsys, *overrides: str) -> list[str]:
    plan.main(list(overrides))
    return capsys.readouterr().out.splitlines()


def cell(text: list[str], label: str) -> list[str]:
    """The cells of a line of the table."""
    [found] = [line for line in text if line.strip().startswith(label + "  ")]
    return found.strip().removeprefix(label).split()


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch, tmp_path):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))


# --- the bill -------------------------------------------------------------------------------------


def test_json_has_every_key_for_the_configuration_and_both_twins(capsys):
    costs = planned(capsys)
    for arm in (costs, costs["twin"], costs["iso_params"]):
        assert set(KEYS) <= arm.keys()
        assert all(type(arm[key]) is int for key in KEYS)
    assert costs.keys() - costs["twin"].keys() == {"twin", "iso_params"}


@pytest.mark.parametrize(
    "overrides",
    ["", "objective=diffusion sampler.guidance=3", "sampler.loops=4to1", "supervision=deep"],
)
def test_the_bill_equals_the_formulas(capsys, overrides):
    asked = [*TINY, *overrides.split()]
    costs, config = planned(capsys, *asked), compose(asked)
    net = network(config)
    assert costs["params_total"] == sum(p.numel() for p in build_backbone(config).parameters())
    assert costs["nfe"] == (8 if "guidance" in overrides else 4)
    assert costs["flops_per_sample"] == 2 * costs["macs_per_sample"]
    assert costs["macs_per_sample"] == costs["nfe"] * costs["macs_per_pass"]
    if "4to1" not in overrides:
        assert costs["macs_per_pass"] == macs_per_pass(net, 4)
        assert costs["macs_per_pass_trunk"] == macs_trunk(net, 4)
    else:
        assert costs["macs_per_pass_trunk"] == macs_trunk(net, 4) * 10 / 16
    assert costs["train_flops_total"] == train_flops(config) * 64
    assert costs["images"] == 64 and costs["depth"] == 4 and costs["loops"] == 4


def test_the_budget_is_in_whole_batches(capsys):
    assert planned(capsys, "budget.images=1000", "batch_size=128")["images"] == 1024


@pytest.mark.parametrize("experiment", options_of(package_folder("conf") / "experiment"))
def test_every_experiment_can_be_planned(capsys, experiment):
    text = lines(capsys, f"experiment={experiment}")
    assert text[0] == compose([f"experiment={experiment}"]).name
    assert "training FLOPs " in "".join(text)


@pytest.mark.parametrize("model", options_of(package_folder("conf") / "model"))
@pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])
def test_every_model_can_be_planned(capsys, model, objective):
    block = ["model.block=post_norm", "model.cond_width=null"] * (model == "dit_2048")
    block *= objective == "masked"
    costs = planned(capsys, f"model={model}", f"objective={objective}", "loops=2", *block)
    assert costs["twin"]["params_blocks"] == 2 * costs["params_blocks"]


def test_plan_imports_neither_torch_nor_lightning():
    """Also for 2.1 billion parameters. The time that it takes is in docs/compute.md."""
    script = (
        "import sys; from eltlab import plan; plan.main(['experiment=paper/dit_32']); "
        "heavy = {'torch', 'lightning', 'pandas', 'scipy', 'sklearn'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2.151G" in done.stdout


def test_the_table_shows_ratios_to_the_configuration(capsys):
    text = lines(capsys)
    assert cell(text, "layers x loops") == ["2", "x", "4", "8", "x", "1", "2", "x", "1"]
    assert cell(text, "blocks") == ["99.97k", "399.9k", "4.00", "99.97k", "1.00"]
    assert cell(text, "passes per sample (NFE)") == ["12", "12", "1.00", "12", "1.00"]


def test_a_unique_layer_model_is_its_own_twin(capsys):
    assert cell(lines(capsys, "loops=1"), "blocks") == ["399.9k"]
    costs = planned(capsys, "loops=1")
    own = {key: costs[key] for key in costs["twin"]}
    assert costs["twin"] == costs["iso_params"] == own


def test_a_split_that_changes_the_depth_is_reported(capsys):
    [note] = [line for line in lines(capsys, "unique_layers=4", "loops=6") if "sets the split" in line]
    assert note == ("unique_layers=4 sets the split: 24 layers per pass, 3.00x the 8 of model=elt_tiny")
    # Also if the model's own depth could not be split like this, or not trained for this budget.
    for split in (
        ["model.prelude=4", "model.coda=4", "unique_layers=2", "loops=2"],
        ["unique_layers=1", "loops=2", "budget.train_flops=1e9"],
    ):
        assert any("sets the split" in line for line in lines(capsys, *split))
    for same in ([], ["unique_layers=4", "loops=2"], ["experiment=anatomy/prelude_coda"]):
        assert not any("sets the split" in line for line in lines(capsys, *same))


# --- the twins ------------------------------------------------------------------------------------

ANATOMY = st.fixed_dictionaries(
    {
        "model.prelude": st.integers(0, 2),
        "model.coda": st.integers(0, 2),
        "model.loop_embedding": st.sampled_from(["true", "false"]),
        "model.inject_input": st.sampled_from(["true", "false"]),
        "unique_layers": st.integers(1, 4),
        "loops": st.integers(2, 8),
        "objective": st.sampled_from(["masked", "diffusion"]),
    }
)


@settings(max_examples=30)
@given(ANATOMY)
def test_twins_match_what_they_are_named_for(keys):
    config = compose([f"{key}={value}" for key, value in keys.items()])
    net, other, equal = network(config), twin(config), iso_params(config)
    assert other.loops == equal.loops == 1
    assert other.supervision.name == equal.supervision.name == "final"
    assert macs_trunk(network(other), 1) == macs_trunk(net, config.loops)
    per_layer = params_blocks(net) // net.layers
    more = config.unique_layers * (config.loops - 1)
    assert params_blocks(network(other)) == params_blocks(net) + more * per_layer
    assert abs(count_params(equal) / count_params(config) - 1) <= TOLERANCE
    assert macs_trunk(network(equal), 1) < macs_trunk(net, config.loops)
    # They are configurations that fit can train unchanged.
    for arm in (other, equal):
        assert sum(p.numel() for p in meta(arm).parameters()) == count_params(arm)


def meta(config):
    with torch.device("meta"):
        return build_backbone(config)


def test_fewer_layers_match_if_they_can():
    config = tiny("unique_layers=2", "loops=4")
    assert (iso_params(config).unique_layers, iso_params(config).model.width) == (2, 16)
    assert count_params(iso_params(config)) == count_params(config)


def test_a_width_that_cannot_be_narrowed_keeps_its_layers():
    narrow = ["model.width=6", "model.heads=3", "model.mlp_width=12", "model.inject_input=true"]
    assert iso_params(compose(narrow)).loops == 1
    assert iso_params(compose([*narrow, "model.heads=6"])).model.width in (6,)


def test_layers_are_narrowed_to_match_an_injection():
    config = compose(["model.inject_input=true", "unique_layers=1", "loops=8"])
    equal = iso_params(config)
    assert equal.unique_layers == 2 and equal.model.width < 64
    assert not equal.model.inject_input


# --- memory ---------------------------------------------------------------------------------------


def test_proposed_settings_fit(capsys):
    """Every setting that plan proposes is a command line; each is planned again."""
    asked = ["model=elt_b", "batch_size=512", "memory=1", "trainer.accelerator=cpu"]
    text = lines(capsys, *asked)
    assert any(line.startswith("does not fit: training takes") for line in text)
    start = text.index("it would fit with") + 1
    proposals = [line.strip().split(": ") for line in text[start:]]
    assert len(proposals) == 4
    for settings_text, taken in proposals:
        again = lines(capsys, *asked, *settings_text.split())
        assert not any("does not fit" in line for line in again), settings_text
        assert "".join(cell(again, "training memory")[:2]) == taken.replace(" ", "")
    # And each batch is the largest of its kind.
    assert proposals[0][0].startswith("batch_size=")
    double = 2 * int(proposals[0][0].removeprefix("batch_size="))
    assert any("does not fit" in line for line in lines(capsys, *asked, f"batch_size={double}"))


def test_a_run_that_trains_and_cannot_sample_does_not_fit(capsys):
    wide = "objective=masked data=cifar10 data.codebook=16384 sampler.guidance=3 batch_size=64"
    asked = [
        *wide.split(),
        "supervision=final",
        "trainer.recompute=true",
        "trainer.accelerator=cuda",
    ]
    costs = planned(capsys, *asked)
    assert costs["memory_training_bytes"] < 2**30 < costs["memory_inference_bytes"]
    [line] = [line for line in lines(capsys, *asked, "memory=1") if "does not fit" in line]
    assert format_bytes(costs["memory_inference_bytes"]) in line


def test_a_model_that_fits_at_no_batch_size_is_reported(capsys):
    text = lines(capsys, "experiment=paper/dit_32", "trainer.accelerator=cuda", "memory=24")
    assert text[-1] == "no batch_size fits"
    fits = lines(capsys, "memory=24")
    assert not any("fit" in line for line in fits)


def test_the_device_that_is_planned_for_decides_the_precision(capsys):
    costs = planned(capsys, "trainer.accelerator=cuda")
    assert costs["memory_training_bytes"] == training_memory(compose([]), "cuda", "bf16-mixed").total
    costs = planned(capsys, "trainer.accelerator=cuda", "trainer.precision=32-true")
    assert costs["memory_training_bytes"] == training_memory(compose([]), "cuda", "32-true").total


# --- time -----------------------------------------------------------------------------------------


def test_times_come_from_a_calibration(capsys):
    assert planned(capsys, *TINY)["train_seconds"] is None
    assert "calibrate=true" in lines(capsys, *TINY)[-1]
    calibrated = planned(capsys, *TINY, "calibrate=true")
    assert calibrated["train_seconds"] > 0 and calibrated["iso_params"]["train_seconds"] > 0
    # Later plans use it without measuring; times are proportional to the budget.
    assert planned(capsys, *TINY) == calibrated
    longer = planned(capsys, *TINY, "budget.images=640")
    assert longer["train_seconds"] == pytest.approx(10 * calibrated["train_seconds"])
    text = lines(capsys, *TINY)
    assert text[-1].endswith("with this configuration") and cell(text, "training time")
    # As many parameters, but a different network: not this configuration.
    for other in ("supervision=deep", "trainer.recompute=true", "model.block=pre_norm"):
        assert "with this configuration" not in lines(capsys, *TINY, other)[-1]
    # A different configuration uses the nearest calibration, and says so.
    other = lines(capsys, *TINY, "model.width=32")
    assert "width 16, 16 tokens, batch 8" in other[-1]


def test_invalid_entries_of_the_cache_are_skipped(capsys):
    planned(capsys, *TINY, "loops=1", "calibrate=true")
    file = measured_rates.rates_file()
    file.write_text('{"machine": "x"}\n' + file.read_text() + '{"torn')
    assert planned(capsys, *TINY, "loops=1")["train_seconds"] > 0


@pytest.mark.parametrize(
    ("visible", "answer", "found"),
    [
        (None, "NVIDIA H100 80GB HBM3, 81559", ("NVIDIA H100 80GB HBM3", 81559 * 2**20)),
        (None, "NVIDIA GB10, [N/A]", ("NVIDIA GB10", None)),
        ("1", "--id=1, 100", ("--id=1", 100 * 2**20)),
        ("", "NVIDIA H100, 81559", None),
        ("-1", "NVIDIA H100, 81559", None),
        (None, "", None),
    ],
)
def test_the_gpu_is_the_first_that_cuda_may_use(monkeypatch, tmp_path, visible, answer, found):
    """A stub replaces nvidia-smi; it prints the --id that it got if the answer contains one."""
    script = tmp_path / "nvidia-smi"
    words = answer.replace("--id=1", "$3") if "--id" in answer else answer
    script.write_text(f'#!/bin/sh\necho "{words}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if found is not None and visible == "1":
        found = ("--id=1", found[1])
    assert machine_facts.find_gpu() == found


def test_a_second_calibration_replaces_the_first(capsys):
    for _ in range(2):
        planned(capsys, *TINY, "loops=1", "calibrate=true")
    from eltlab.config.cost.measured_rates import read_rates

    assert len(read_rates()) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("format=yaml", "format=yaml: choose one of text, json"),
        ("memory=0", "memory=0.0: must be above 0"),
        ("memory=nan", "memory=nan: must be a finite number"),
        ("data=imagenet256_tokens objective=diffusion", "data=imagenet256_tokens holds tokens"),
        ("data=imagenet256_latents objective=masked", "holds latents, and objective=masked"),
        ("calibrate=perhaps", "calibrate=perhaps"),
        ("experiment=paper/elt_l_8x4", "did you mean paper/elt_l_8x3?"),
        ("experiment=paper/base/masked_image", "did you mean"),
    ],
)
def test_mistakes_are_reported(wrong, said):
    with pytest.raises(UserError, match=said):
        plan.main(wrong.split())


def test_calibrating_what_is_not_here_or_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(machine_facts, "find_gpu", lambda: None)
    with pytest.raises(UserError, match="there is no GPU here"):
        plan.main(["trainer.accelerator=cuda", "calibrate=true"])
    with pytest.raises(UserError, match="calibrate a smaller batch_size or model"):
        plan.main(["experiment=paper/dit_32", "calibrate=true"])


# --- how numbers are written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12, "12"), (999, "999"), (1000, "1k"), (122880, "122.9k"), (999960, "1M")],
)
def test_format_si(value, text):
    assert format_si(value) == text


def test_units_follow_a_space():
    assert format_si(29.9e9, "FLOP/s") == "29.9 GFLOP/s" and format_si(5, "FLOP/s") == "5 FLOP/s"


@pytest.mark.parametrize(
    ("size_in_bytes", "text"),
    [(512 * 1024, "512 KiB"), (3 * 2**20, "3 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**41, "2,048 GiB")],
)
def test_format_bytes(size_in_bytes, text):
    assert format_bytes(size_in_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00421, "4.21 ms"), (58, "58 s"), (750, "12.5 min"), (11520, "3.2 h"), (1468800, "17 days")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_columns_are_aligned():
    assert format_table([["a", "10"], ["bcd", "2"]]) == ["a    10", "bcd   2"]


def test_the_bill_does_not_change_the_configuration():
    config = tiny()
    before = repr(config)
    bill(config, "cpu", "32-true"), twin(config), iso_params(config)
    assert repr(config) == before


def test_a_plan_may_name_data_that_is_not_here(capsys):
    away = ["data=images", f"data.root={Path('/nowhere/at/all')}", "data.classes=10"]
    assert planned(capsys, *away)["tokens"] == 64
