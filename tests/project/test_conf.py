"""The options of conf/ fit together: every model and objective composes and can be planned."""

import pytest
from support.plans import planned

from eltlab.common.package_info import package_folder
from eltlab.config.parsing import options_of
from eltlab.runs.compose_config import compose


def test_every_default_combination_composes() -> None:
    for model in ("elt_s", "elt_b", "elt_l", "elt_xl", "elt_h", "elt_g", "elt_tiny", "dit_2048"):
        objectives = ("diffusion",) if model == "dit_2048" else ("masked", "diffusion")
        for objective in objectives:
            config = compose([f"model={model}", f"objective={objective}"])
            assert config.unique_layers * config.loops == config.model.depth


def test_defaults_are_what_the_readme_says() -> None:
    config = compose([])
    assert (config.model.name, config.loops, config.objective.name) == ("elt_tiny", 4, "masked")
    assert (config.supervision.name, config.data.name) == ("ilsd", "digits")


@pytest.mark.parametrize("model", options_of(package_folder("conf") / "model"))
@pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])
def test_every_model_can_be_planned(capsys, model, objective):
    block = ["model.block=post_norm", "model.cond_width=null"] * (model == "dit_2048")
    block *= objective == "masked"
    costs = planned(capsys, f"model={model}", f"objective={objective}", "loops=2", *block)
    assert costs["twin"]["params_blocks"] == 2 * costs["params_blocks"]


@pytest.mark.parametrize(
    ("overrides", "decay"),
    [
        ("model=elt_h", 0.225),
        ("model=elt_g", 0.225),
        ("model=elt_xl", 0.045),
        ("model=elt_h objective=diffusion", 0.01),  # the paper's factor is that of its masked nets
        ("model=elt_g objective=flow", 0.01),
        ("model=elt_h optim.weight_decay=0.1", 0.1),
    ],
)
def test_masked_models_of_scale_h_and_up_have_five_times_the_weight_decay(overrides, decay):
    assert compose(overrides.split()).optim.weight_decay == decay
