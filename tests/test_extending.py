"""docs/extending.md: its two examples are run exactly as printed there."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny

import eltlab
from eltlab import evaluate, export, fit
from eltlab.common.errors import UserError
from eltlab.config.cost import flops
from eltlab.config.identity import identity
from eltlab.generation.objective import build_objective
from eltlab.model.backbone import build_backbone
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.compose_config import compose, load_config
from eltlab.runs.row_files import read_rows
from eltlab.training.supervision import build_supervision

DOCS = Path(__file__).parents[1] / "docs" / "extending.md"
SMALL = [*TINY, "trainer.grids=0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, under the names that their first lines give."""
    folder = tmp_path_factory.mktemp("extensions")
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None
        (folder / name[1]).write_text(block)
    assert sorted(path.name for path in folder.iterdir()) == ["chain.py", "flow.py"]
    return folder


def trained(files: Path, runs: Path, *overrides: str) -> Path:
    """The folder of a finished run of these overrides; {} stands for the folder of the files."""
    fit.main([*SMALL, f"runs_dir={runs}", *(text.format(files) for text in overrides)])
    [config] = runs.rglob("config.yaml")
    return config.parent


ARMS = [
    ("supervision={}/chain.py", "objective=masked"),
    ("supervision={}/chain.py", "objective=diffusion", "supervision.weight=0.5"),
    ("objective={}/flow.py", "supervision=ilsd"),
    ("objective={}/flow.py", "supervision={}/chain.py"),
]


@pytest.mark.parametrize("overrides", ARMS, ids=" ".join)
def test_the_examples_train_measure_and_load(files: Path, tmp_path: Path, overrides: tuple) -> None:
    run = trained(files, tmp_path, *overrides)
    rows = [row for row in read_rows(run / "rows.jsonl") if row["kind"] == "eval"]
    assert [row["loops"] for row in rows] == [1, 2, 3, 4]
    assert all(row["train_flops_total"] > 0 for row in rows)
    evaluate.main([f"run={run}", "loops=[4to1]"])
    export.main([f"run={run}", f"out={tmp_path / 'model.safetensors'}"])
    images = [eltlab.load(place).sample([3, 7]) for place in (run, tmp_path / "model.safetensors")]
    assert torch.equal(*images)


def test_an_extension_resumes_where_it_was_stopped(files: Path, tmp_path: Path) -> None:
    arm = ["objective={}/flow.py", "supervision={}/chain.py", "evaluate=false"]
    whole = trained(files, tmp_path / "whole", *arm)
    half = trained(files, tmp_path / "half", *arm, "budget.images=32")
    # The same run with half the budget: the longer one passed through the state of its checkpoint.
    target = tmp_path / "resumed" / load_config(whole / "config.yaml").name / whole.name
    (target / "checkpoints").mkdir(parents=True)
    (target / "checkpoints" / "last.ckpt").write_bytes((half / "checkpoints" / "last.ckpt").read_bytes())
    resumed = trained(files, tmp_path / "resumed", *arm)
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, resumed)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name])


def test_keys_of_an_extension_are_checked(files: Path) -> None:
    chain = f"supervision={files}/chain.py"
    assert compose([chain, "supervision.weight=0.5"]).supervision.weight == 0.5
    with pytest.raises(UserError, match=r"supervision\.weight=heavy"):
        compose([chain, "supervision.weight=heavy"])
    with pytest.raises(UserError, match=r"unknown key supervision\.wait=1"):
        compose([chain, "supervision.wait=1"])


def test_an_extension_counts_what_it_spends(files: Path) -> None:
    config = tiny(f"supervision={files}/chain.py")
    assert config.supervision.spent(4) == ({4: 1.0}, 4, True)
    assert build_supervision(config.supervision, 4, 0, 10).exits(0) == (1, 2, 3, 4)


def test_the_content_of_an_extension_is_part_of_the_identity(files: Path, tmp_path: Path) -> None:
    copy = tmp_path / "chain.py"
    copy.write_text((files / "chain.py").read_text())
    here, there = (compose([f"supervision={path}"]) for path in (files / "chain.py", copy))
    assert identity(here) == identity(there)  # its content counts, not its path
    copy.write_text(copy.read_text().replace("self.weight * distilled", "2 * distilled"))
    assert identity(compose([f"supervision={copy}"])) != identity(here)


def test_a_run_refuses_its_extension_if_the_file_changed(files: Path, tmp_path: Path) -> None:
    """Its sampler would draw different samples under the protocol of the old ones."""
    flow = tmp_path / "flow.py"
    flow.write_text((files / "flow.py").read_text())
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
    net = flops.network(config)
    backbone = build_backbone(config)
    assert flops.params_total(net) == sum(p.numel() for p in backbone.parameters())
    assert build_objective(config).label_smoothing == 0.0  # its own, though it derives from ours
    with pytest.raises(UserError, match="16 tokens are unmasked in at most 16 steps"):
        tiny(f"objective={tmp_path}/unsmoothed.py", "sampler.steps=17")


def test_a_supervision_that_derives_from_ours_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "sub.py").write_text(
        "from dataclasses import dataclass\n"
        "from eltlab.config import IlsdConfig\n"
        "@dataclass\n"
        "class Sub(IlsdConfig):\n"
        "    def build(self, loops, seed, steps):\n"
        "        return 'its own'\n"
    )
    config = tiny(f"supervision={tmp_path}/sub.py")
    assert build_supervision(config.supervision, 4, 0, 10) == "its own"


def test_log_terms_of_an_extension_do_not_stop_the_run(files: Path, tmp_path: Path) -> None:
    source = (files / "chain.py").read_text()
    named = source.replace('{"loss": total,', '{"my_term": total,')
    assert named != source
    (tmp_path / "named.py").write_text(named)
    run = trained(tmp_path, tmp_path / "runs", "supervision={}/named.py", "evaluate=false")
    assert (run / "checkpoints" / "last.ckpt").is_file()


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


def test_a_perfect_flow_reproduces_the_data(files: Path) -> None:
    from eltlab.common.seeds import SampleNoise

    flow = build_objective(tiny(f"objective={files}/flow.py"))
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    sampler = tiny("objective=diffusion").sampler

    def perfect(step, inputs):
        z, t = inputs
        return (z - x) / t.view(-1, 1, 1, 1)

    done = flow.sample(perfect, SampleNoise(0, [0, 1, 2]), x.shape[1:], sampler)
    assert torch.allclose(done, x, atol=1e-5)


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
