"""What is refused in the configuration of a run, and what is derived from it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.budgets import FREE, half_a_step
from support.command_line import typed_in
from support.errors import fails
from support.slurm import LOCAL
from support.tiny_run import TINY, tiny

from eltlab import fit
from eltlab.common.errors import UserError
from eltlab.config.cost.flops import budget_flops
from eltlab.config.identity import identity
from eltlab.config.keys import to_yaml
from eltlab.config.schema import DEFAULT_IMAGES, FinalConfig
from eltlab.runs.compose_config import compose


def test_without_a_budget_a_run_has_the_default():
    assert compose([]).budget.images == DEFAULT_IMAGES


@settings(max_examples=30)
@given(st.floats(1e9, 1e13), st.sampled_from(["ilsd", "final", "deep", "random_depth"]))
def test_flops_buy_the_nearest_whole_batch(flops, supervision):
    config = compose([*FREE, f"supervision={supervision}", f"budget.train_flops={flops!r}"])
    assert abs(budget_flops(config) - flops) <= half_a_step(config) * (1 + 1e-9)
    assert config.budget.images % config.batch_size == 0


def test_a_run_is_the_same_however_its_budget_is_given():
    flops = budget_flops(tiny())
    by_flops = compose([*FREE, f"budget.train_flops={flops!r}"])
    assert identity(by_flops) == identity(tiny()) and to_yaml(by_flops) == to_yaml(tiny())


MISTAKES = {
    "loops=3": "loops=3 does not divide model.depth=8; choose one of 1, 2, 4, 8",
    "model.heads=5": "model.heads=5 does not divide model.width=64; choose one of 1, 2, 4",
    "data.patch=3": "data.patch=3 does not divide data.size=8; choose one of 1, 2, 4, 8",
    "loops=0": "loops=0: must be at least 1",
    "supervision.min_loops=4": "supervision.min_loops=4 leaves no student below loops=4",
    "supervision.weight.start=1.5": "supervision.weight.start=1.5: must be in [0, 1]",
    "supervision.weight.end=-0.1": "supervision.weight.end=-0.1: must be in [0, 1]",
    "supervision.weight.shape=step": "choose one of linear, cosine, constant",
    "supervision=deep supervision.inner=[1,1]": "supervision.inner=[1, 1]: give one weight",
    "supervision=deep supervision.inner=-1": "supervision.inner=-1: give one weight",
    "supervision=deep supervision.inner=much": "supervision.inner=much: give one weight",
    "supervision=random_depth supervision.max_loops=9": "give a range within 1 to loops=4",
    "supervision=random_depth supervision.min_loops=5": "give a range within 1 to loops=4",
    "supervision=random_depth supervision.mean=2": "choose supervision.law=poisson",
    "supervision=random_depth supervision.law=poisson": "requires a mean between",
    "supervision=random_depth supervision.law=normal": "choose one of uniform, poisson",
    "supervision=nowhere.py": "supervision=nowhere.py: no such file",
    "objective=nowhere.py": "objective=nowhere.py: no such file",
    "supervision.file=x.py": "chosen by its group; write supervision=x.py",
    "model.prelude=4 model.coda=4": "leaves no layer to loop",
    "model.prelude=1": "loops=4 does not divide model.depth - model.prelude - model.coda = 8 - 1",
    "model.prelude=-1": "model.prelude=-1: must be at least 0",
    "sampler.halting=0": "sampler.halting=0.0: must be above 0",
    "sampler.loops=4to": "sampler.loops=4to: give an integer of at least 1, a ramp such as 4to1",
    "sampler.loops=0to4": "sampler.loops=0to4: give an integer",
    "data=images": "data.root is missing",
    "data.root=/tmp": "the digits come with scikit-learn. Remove it.",
    "data=fashion_mnist data.size=32": "fashion_mnist is 28x28, 1 channels, 10 classes",
    "data.channels=2": "data.channels=2: choose one of 1, 3",
    "optim.warmup=1": "optim.warmup=1.0: must be in [0, 1)",
    "optim.warmup_images=100": "unknown key optim.warmup_images=100: did you mean optim.warmup?",
    "ema.lengths=[]": "ema.lengths=[]: give at least one length",
    "ema.lengths=[0.1,0.1]": "ema.lengths=[0.1, 0.1]: give at least one length, each once",
    "ema.lengths=[0.1,0.3]": "ema.lengths=[0.1, 0.3]: each must be in (0, 0.28]",
    "ema.lengths=[0]": "ema.lengths=[0.0]: each must be in (0, 0.28]",
    "ema.length=0.2": "ema.length=0.2: the run keeps no such average; choose one of ema.lengths, 0.05, 0.1",
    "model.residual_scale=0": "model.residual_scale=0.0: must be above 0",
    "optim.lr=-1": "optim.lr=-1.0: must be at least 0",
    "optim.lr=nan": "optim.lr=nan: must be a finite number",
    "optim.weight_decay=inf": "optim.weight_decay=inf: must be a finite number",
    "optim.lr=fast": "optim.lr=fast: Value 'fast' of type 'str' could not be converted to Float",
    "model.dropout=1": "model.dropout=1.0: must be in [0, 1)",
    "batch_size=0": "batch_size=0: must be at least 1",
    "budget.images=0": "budget.images=0: must be at least 1",
    "lr=1e-3": "unknown key lr=0.001: did you mean optim.lr?",
    "min_loops=2": "did you mean supervision.min_loops?",
    "supervison=final": "unknown key supervison=final: did you mean supervision?",
    "colour=1": "unknown key colour=1: --help lists every key",
    "optim.lrr=1": "unknown key optim.lrr=1: did you mean optim.lr?",
    "loop=2": "unknown key loop=2: did you mean loops?",
    "objective.prediction=x": "unknown key objective.prediction=x: only objective=diffusion has it",
    "objectve=masked": "did you mean objective",
    "model=elt_bb": "model=elt_bb: did you mean elt_b?",
    "model.block=adaln": "model.block=adaln requires a condition vector",
    "model.width=abc": "model.width=abc",
    "model.cond_width=32": "model.cond_width=32",
    "optim=7": "optim=7: options: diffusion, flow, masked",
    "model.width": "'model.width' is not of the form key=value",
    "loops=1,2": "for studies over many: python -m eltlab.sweep",
    "+loops=2": "write key=value without + or ~",
    "sampler.loops=[1,2]": "sampler.loops=[1, 2] has 2 entries but sampler.steps=12; give an integer",
    "sampler.steps=17": "16 tokens are unmasked in at most 16 steps",
    "sampler.name=ddim": "does not draw from objective=masked; choose maskgit",
    "evaluate_loops=[0]": "evaluate_loops=0: give an integer of at least 1, a ramp such as 4to1",
    "evaluate_loops=[1,4to]": "evaluate_loops=4to: give an integer of at least 1, a ramp such as 4to1",
    "metrics.samples=0": "metrics.samples=0: must be at least 1",
    "metrics.samples=1000000": "give at most 100,000",
    "data.size=28": "digits is 8x8, 1 channels, 10 classes",
    "data.codebook=100000": "distinct 2x2 patches; choose at most that many",
    "name=../up": "name=../up",
    "trainer.accelerator=tpu": "trainer.accelerator=tpu: choose one of auto, cpu, cuda",
    "supervision.name=final": "chosen by its group; write supervision=final",
    "model.name=elt_g": "chosen by its group; write model=elt_g",
    "objective.bias=1000": "objective.bias",
    "metrics.reference=1": "metrics.reference=1: give at least two per class, 20",
    "name=a(1)": "name=a(1): use letters, digits",
    "data=images data.root=~/nowhere/at/all": "nowhere/at/all: does not exist",
    "data=images data.root=/nowhere/a(1)": "/nowhere/a(1): does not exist",
    "data=images data.root=/nowhere/it's-ünï": "/nowhere/it's-ünï: does not exist",
    "optim.betas=[0.9,1]": "optim.betas=[0.9, 1.0]: each must be in [0, 1)",
    "optim.betas=[0.9]": "optim.betas=[0.9]: give two numbers",
    "optim.betas=[0.9": "'optim.betas=[0.9' is not of the form key=value",
    "metrics.reference=5000": "metrics.reference=5000: the training split has only 1,442 images",
    "metrics.weights=w.pt": "applies to inception and i3d only; metrics.extractor is classifier",
    "data.classes=0": "data.classes=0: must be at least 2",
    "-m": "python -m eltlab.sweep",
    "--multirun": "python -m eltlab.sweep",
    "--config-name=x": "only key=value and --help",
    "data=images data.root=": "data.root=: empty; give a value, or remove it",
    "runs_dir=": "runs_dir=: empty; give a value, or remove it",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed_in(fit, mistake.split(), monkeypatch) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and MISTAKES[mistake] in errors[0], printed.err
    assert "Traceback" not in printed.err and printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("trainer=slurm", "no sbatch here; submit on a login node"),
        ("trainer.name=slurm", "chosen by its group; write trainer=slurm"),
        ("trainer.slurm.cluster=here", "trainer.slurm.cluster=here: choose one of slurm, local"),
        ("trainer.slurm.hours=0", "trainer.slurm.hours=0.0: shorter than"),
        ("trainer.nodes=0", "trainer.nodes=0: must be at least 1"),
        (" ".join([*LOCAL, "trainer.nodes=2"]), "trainer.nodes=2: trainer.slurm.cluster=local has"),
    ],
)
def test_mistakes_in_the_keys_of_slurm_leave_nothing(tmp_path, monkeypatch, overrides, message) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        fit.main([*TINY, *overrides.split(), f"runs_dir={tmp_path / 'runs'}"])
    assert message in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.name=ddpm"], "does not draw from objective=flow; choose euler or heun"),
        (["objective.time_std=0"], r"objective.time_std=0.0: must be in \[0.01, 50\]"),
        (["objective.shift=0"], r"objective.shift=0.0: must be in \[0.01, 50\]"),
        (["objective.prediction=v"], "unknown key objective.prediction"),
        (["model.width=18", "model.heads=2"], "require a multiple of 4"),
    ],
)
def test_mistakes_in_the_keys_of_a_flow_are_reported(overrides, message):
    with pytest.raises(UserError, match=message):
        compose(["objective=flow", *overrides])


def test_one_loop_makes_every_supervision_final():
    config = tiny("loops=1", "supervision=ilsd")
    assert config.supervision == FinalConfig(name="final")
    assert "-4x1-final-" in str(config.name)
    final = tiny("loops=1", "supervision=final")
    assert config == final


def test_the_first_average_is_the_one_that_is_used_unless_chosen():
    assert compose([]).ema.length == 0.05
    turned = compose(["ema.lengths=[0.1,0.05]"])
    assert turned.ema.length == 0.1 and turned.ema.lengths == [0.05, 0.1]
    assert compose(["ema.length=0.1"]).ema.length == 0.1


def test_which_average_is_used_does_not_name_a_run():
    """It is chosen when a run is measured; which averages are kept is chosen before."""
    assert identity(compose(["ema.length=0.1"])) == identity(compose([]))
    assert identity(compose(["ema.lengths=[0.1,0.05]"])) == identity(compose([]))  # the same averages
    assert identity(compose(["ema.lengths=[0.05]"])) != identity(compose([]))
    assert identity(compose(["optim.warmup=0.1"])) != identity(compose([]))


@pytest.mark.parametrize(
    ("overrides", "normed"),
    [
        ("model.block=pre_norm", True),
        ("", False),
        ("objective=diffusion model.block=pre_norm", False),
    ],
)
def test_only_the_masked_pre_norm_gets_a_norm_before_its_head(overrides, normed):
    config = compose(overrides.split())
    assert config.model.final_norm is normed
    assert compose([*overrides.split(), "model.final_norm=false"]).model.final_norm is False  # an old run
    if not normed:
        message = fails(compose, [*overrides.split(), "model.final_norm=true"])
        assert message.startswith("model.final_norm=true: only masked models with model.block=pre_norm")
