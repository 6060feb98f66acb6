"""The verb plan: its JSON, its mistakes, and how little it imports."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.plans import planned

from eltlab import plan
from eltlab.common.errors import UserError

pytestmark = pytest.mark.usefixtures("uncalibrated")


KEYS = """unique_layers loops depth width tokens params_total params_blocks params_embedding
    params_head macs_per_pass macs_per_pass_trunk macs_per_pass_attention nfe macs_per_sample
    macs_per_sample_trunk flops_per_sample train_flops_per_image train_flops_total
    memory_training_bytes memory_inference_bytes""".split()  # noqa: SIM905


def test_json_has_every_key_for_the_configuration_and_both_twins(capsys):
    costs = planned(capsys)
    for arm in (costs, costs["twin"], costs["iso_params"]):
        assert set(KEYS) <= arm.keys()
        assert all(type(arm[key]) is int for key in KEYS)
    assert costs.keys() - costs["twin"].keys() == {"twin", "iso_params"}


@pytest.mark.integration
def test_the_real_command_imports_neither_torch_nor_lightning():
    """Also for 2.1 billion parameters. The time that it takes is in docs/compute.md."""
    script = (
        "import sys; from eltlab import plan; plan.main(['experiment=paper/dit_32']); "
        "heavy = {'torch', 'lightning', 'pandas', 'scipy', 'sklearn'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2.151G" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
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
def test_mistakes_are_reported(wrong, message):
    with pytest.raises(UserError, match=message):
        plan.main(wrong.split())


def test_a_plan_may_name_data_that_is_not_here(capsys):
    away = ["data=images", f"data.root={Path('/nowhere/at/all')}", "data.classes=10"]
    assert planned(capsys, *away)["tokens"] == 64
