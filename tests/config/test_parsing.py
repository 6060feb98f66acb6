"""How overrides and files become a configuration, and what their errors say."""

import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.budgets import half_a_step
from support.small_studies import GRID, written
from support.storage_urls import URL
from support.tiny_run import tiny

from eltlab import sweep
from eltlab.common.errors import UserError
from eltlab.common.package_info import package_folder
from eltlab.config import parsing
from eltlab.config.cost.flops import budget_flops
from eltlab.config.keys import to_yaml
from eltlab.config.parsing import compose_node, parse_overrides, typed
from eltlab.runs.compose_config import compose


def test_a_requested_budget_replaces_that_of_the_file():
    config = compose(["experiment=demo", "budget.train_flops=1e12"])
    assert abs(budget_flops(config) - 1e12) <= half_a_step(config)


def test_a_file_may_match_a_mapping():
    plain = OmegaConf.create(to_yaml(tiny()))
    plain.budget = {"images": None, "match": {"loops": 1}}
    assert typed(plain).budget.match == {"loops": 1}


def test_a_key_without_a_default_is_required(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "from dataclasses import dataclass\n"
        "from omegaconf import MISSING\n"
        "from eltlab.config import SupervisionConfig\n"
        "@dataclass\n"
        "class Bare(SupervisionConfig):\n"
        "    weight: float = MISSING\n"
    )
    with pytest.raises(UserError, match=r"supervision\.weight: has no default"):
        tiny(f"supervision={tmp_path}/bare.py")
    assert tiny(f"supervision={tmp_path}/bare.py", "supervision.weight=2").supervision.weight == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [f"storage={URL}"],
        [f"storge={URL}"],
        [f"storge={URL.partition('?')[0]}"],
        [f"+storage={URL.partition('?')[0]}"],
        [f"storge={URL.partition('?')[0]},b"],
        [URL.partition("?")[0]],
    ],
)
def test_no_message_contains_the_password(tmp_path, arguments):
    file = written(tmp_path, GRID)
    with pytest.raises(UserError) as refused:
        sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *arguments])
    assert "s3cret" not in str(refused.value) and "postgresql://u:***@" in str(refused.value)


def test_an_edited_file_of_conf_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compositions are cached, and a notebook may outlive a file's content."""
    shutil.copytree(package_folder("conf"), tmp_path / "conf")
    monkeypatch.setattr(parsing, "package_folder", lambda name: tmp_path / name)
    file = tmp_path / "conf" / "model" / "elt_tiny.yaml"
    chosen = parse_overrides(["model=elt_tiny"])
    before = compose_node(chosen)
    assert compose_node(chosen) == before
    assert before.model.width == 64
    file.write_text(file.read_text().replace("  width: 64\n", "  width: 96\n"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert compose_node(chosen).model.width == 96


def test_overrides_do_not_reach_later_compositions() -> None:
    node = compose_node(parse_overrides(["model.width=16"]))
    node.model.depth = 99
    assert compose_node([]).model.depth != 99 and compose_node([]).model.width != 16
