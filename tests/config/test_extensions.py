"""Supervisions and objectives from files: their keys, and the files that are refused."""

from pathlib import Path

import pytest
from support.extension_files import trained
from support.tiny_run import tiny

from eltlab import evaluate
from eltlab.common.errors import UserError
from eltlab.config.cost.flops import params_total
from eltlab.config.network_shape import network
from eltlab.generation.objective import build_objective
from eltlab.model.backbone import build_backbone
from eltlab.runs.compose_config import compose


def test_keys_of_an_extension_are_checked(extension_files: Path) -> None:
    chain = f"supervision={extension_files}/chain.py"
    assert compose([chain, "supervision.weight=0.5"]).supervision.weight == 0.5
    with pytest.raises(UserError, match=r"supervision\.weight=heavy"):
        compose([chain, "supervision.weight=heavy"])
    with pytest.raises(UserError, match=r"unknown key supervision\.wait=1"):
        compose([chain, "supervision.wait=1"])


def test_a_run_refuses_its_extension_if_the_file_changed(extension_files: Path, tmp_path: Path) -> None:
    """Its sampler would draw different samples under the protocol of the old ones."""
    flow = tmp_path / "flow.py"
    flow.write_text((extension_files / "flow.py").read_text())
    run = trained(tmp_path, tmp_path / "runs", "objective={}/flow.py", "evaluate=false")
    flow.write_text(flow.read_text().replace("z - velocity", "z - 2 * velocity"))
    with pytest.raises(UserError, match="changed since the run was started") as caught:
        evaluate.main([f"run={run}"])
    assert str(flow) in str(caught.value)


def test_an_objective_on_tokens_is_counted_as_one(tmp_path: Path) -> None:
    """Its base class decides, not its name."""
    (tmp_path / "unsmoothed.py").write_text(
        "from dataclasses import dataclass\n"
        "from eltlab.config import MaskedConfig\n"
        "@dataclass\n"
        "class Unsmoothed(MaskedConfig):\n"
        "    def build(self, config):\n"
        "        from eltlab.generation.masked import Masked\n"
        "        return Masked(config.data.codebook, 0.0)\n"
    )
    config = tiny(f"objective={tmp_path}/unsmoothed.py")
    backbone = build_backbone(config)
    assert params_total(network(config)) == sum(p.numel() for p in backbone.parameters())
    assert build_objective(config).label_smoothing == 0.0  # its own, though it derives from ours
    with pytest.raises(UserError, match="16 tokens are unmasked in at most 16 steps"):
        tiny(f"objective={tmp_path}/unsmoothed.py", "sampler.steps=17")


BROKEN = {
    "": "defines 0 classes derived from SupervisionConfig",
    "import nowhere_to_be_found": "importing it failed: ModuleNotFoundError",
    "import sys; sys.exit('no')": "importing it failed: SystemExit: no",
    "def": "importing it failed: SyntaxError",
    "from eltlab.config import SupervisionConfig\nclass A(SupervisionConfig): pass\n"
    "class B(SupervisionConfig): pass": "defines 2 classes derived from SupervisionConfig",
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_file_that_is_no_extension_is_one_line(source: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError, match=BROKEN[source]) as caught:
        compose([f"supervision={path}"])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"supervision=nowhere\.py: no such file"):
        compose(["supervision=nowhere.py"])
