"""What plan shows: the bill of a configuration, its table with the twins, and whether it fits."""

import pytest
from support.plans import cell, lines, planned
from support.tiny_run import TINY, tiny

from eltlab.common.text import format_bytes
from eltlab.config.cost.bill import bill
from eltlab.config.cost.flops import macs_per_pass, macs_trunk, train_flops
from eltlab.config.cost.twins import iso_params, twin
from eltlab.config.network_shape import network
from eltlab.model.backbone import build_backbone
from eltlab.runs.compose_config import compose


@pytest.mark.parametrize(
    "overrides",
    ["", "objective=diffusion sampler.guidance=3", "sampler.loops=4to1", "supervision=deep"],
)
def test_the_bill_equals_the_formulas(capsys, overrides):
    arguments = [*TINY, *overrides.split()]
    costs, config = planned(capsys, *arguments), compose(arguments)
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


def test_the_table_shows_ratios_to_the_configuration(capsys):
    text = lines(capsys)
    assert cell(text, "layers x loops") == ["2", "x", "4", "8", "x", "1", "2", "x", "1"]
    assert cell(text, "blocks") == ["99.97k", "399.9k", "4.00", "99.97k", "1.00"]
    assert cell(text, "passes per sample (NFE)") == ["12", "12", "1.00", "12", "1.00"]


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


def test_proposed_settings_fit(capsys):
    """Every setting that plan proposes is a command line; each is planned again."""
    arguments = ["model=elt_b", "batch_size=512", "memory=1", "trainer.accelerator=cpu"]
    text = lines(capsys, *arguments)
    assert any(line.startswith("does not fit: training takes") for line in text)
    start = text.index("it would fit with") + 1
    proposals = [line.strip().split(": ") for line in text[start:]]
    assert len(proposals) == 4
    assert all("sampler.batch" not in settings_text for settings_text, _ in proposals)
    for settings_text, taken in proposals:
        again = lines(capsys, *arguments, *settings_text.split())
        assert not any("does not fit" in line for line in again), settings_text
        assert "".join(cell(again, "training memory")[:2]) == taken.replace(" ", "")
    # And each batch is the largest of its kind.
    assert proposals[0][0].startswith("batch_size=")
    double = 2 * int(proposals[0][0].removeprefix("batch_size="))
    assert any("does not fit" in line for line in lines(capsys, *arguments, f"batch_size={double}"))


def test_a_run_that_trains_and_cannot_sample_does_not_fit(capsys):
    wide = "objective=masked data=cifar10 data.codebook=16384 sampler.guidance=3 batch_size=64"
    arguments = [
        *wide.split(),
        "supervision=final",
        "trainer.recompute=true",
        "trainer.accelerator=cuda",
    ]
    costs = planned(capsys, *arguments)
    assert costs["memory_training_bytes"] < 2**30 < costs["memory_inference_bytes"]
    [line] = [line for line in lines(capsys, *arguments, "memory=1") if "does not fit" in line]
    assert format_bytes(costs["memory_inference_bytes"]) in line


def test_only_the_batch_of_sampling_shrinks_if_only_sampling_does_not_fit(capsys):
    run = ["objective=masked", "data=cifar10", "data.codebook=16384", "trainer.accelerator=cuda"]
    arguments = [*run, "batch_size=2", "sampler.batch=96", "memory=1"]
    text = lines(capsys, *arguments)
    setting = text[text.index("it would fit with") + 1].strip().partition(":")[0]
    assert setting.startswith("sampler.batch=") and " " not in setting
    assert not any("does not fit" in line for line in lines(capsys, *arguments, setting))
    double = f"sampler.batch={2 * int(setting.removeprefix('sampler.batch='))}"
    assert any("does not fit" in line for line in lines(capsys, *arguments, double))


def test_a_model_that_fits_at_no_batch_is_reported(capsys):
    text = lines(capsys, "experiment=paper/dit_32", "trainer.accelerator=cuda", "memory=24")
    assert text[-1] == "no batch fits"
    fits = lines(capsys, "memory=24")
    assert not any("fit" in line for line in fits)


def test_the_bill_does_not_change_the_configuration():
    config = tiny()
    before = repr(config)
    bill(config, "cpu", "32-true"), twin(config), iso_params(config)
    assert repr(config) == before


def schedule(capsys, *overrides: str) -> list[str]:
    """The line about the schedule, and the warning if there is one."""
    text = lines(capsys, *overrides)
    return [line for line in text if line.startswith(("learning rate: ", "warning: "))]


def test_warm_up_decay_steps_and_averages_are_shown(capsys):
    assert cell(lines(capsys), "optimizer steps") == ["1,500", "1,500", "1.00", "1,500", "1.00"]
    assert schedule(capsys) == [
        "learning rate: warm-up 5.0% (75 steps, 9,600 images), then constant; EMA lengths 0.05 (75 steps) "
        "and 0.1 (150 steps)"
    ]
    [line] = schedule(capsys, "optim.schedule=cosine", "optim.warmup=0.2", "ema.lengths=[0.1]")
    assert line == (
        "learning rate: warm-up 20.0% (300 steps, 38,400 images), then cosine to 0; "
        "EMA lengths 0.1 (150 steps)"
    )


@pytest.mark.parametrize(
    ("overrides", "reasons"),
    [
        (["budget.images=25600"], []),  # 200 steps, 10 of them warm-up
        (["budget.images=25472"], ["fewer than 200", "optim.warmup=0.05 is 9.95 ", "has 0.05, 9.95 steps"]),
        (["budget.images=25600", "optim.warmup=0.04"], ["optim.warmup=0.04 is 8 steps"]),
        (["optim.warmup=0"], []),
        (["budget.images=64000", "ema.lengths=[0.1,0.01]"], ["ema.lengths has 0.01, 5 steps"]),
    ],
)
def test_a_run_that_is_too_short_for_what_it_asks_is_reported(capsys, overrides, reasons):
    _, *warning = schedule(capsys, *overrides)
    assert len(warning) == bool(reasons)
    for line in warning:
        assert all(reason in line for reason in reasons) and line.count(", ") >= len(reasons) - 1


def test_a_width_that_leaves_mlp_and_heads_behind_is_reported(capsys):
    def note(*overrides: str) -> list[str]:
        return [line for line in lines(capsys, *overrides) if line.startswith("model.width=")]

    mlp = "model.mlp_width=256 stays, 2 times the width instead of 4"
    heads = "model.heads=4 stays, 32 wide each instead of 16"
    assert note("model.width=128") == [f"model.width=128: {mlp}; {heads}"]
    assert note("model.width=128", "model.mlp_width=512") == [f"model.width=128: {heads}"]
    assert note("model.width=128", "model.mlp_width=512", "model.heads=8") == []
    assert note() == note("model=elt_b") == note("experiment=demo", "loops=2") == []
