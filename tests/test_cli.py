"""What a user types and what comes back: mistakes in one line, exit code 2, nothing written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eltlab import bench, dashboard, encode, evaluate, export, fit, plan, report, sample, sweep
from eltlab.analysis.command import read
from eltlab.analysis.comparable_rows import comparable
from eltlab.common import command
from eltlab.common.disk_cache import cache_dir
from eltlab.config.keys import walk
from eltlab.config.parsing import is_set_by_group
from eltlab.runs.compose_config import compose
from eltlab.studies.study_file import SweepKeys

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.mlp_width=32",
    "model.depth=4",
    "loops=2",
    "batch_size=32",
    "budget.images=64",
    "trainer.grids=0",
    "sampler.steps=4",
    "metrics.samples=100",
    "evaluate=false",
]


def typed_in(verb: object, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a verb called with these arguments."""
    monkeypatch.setattr(sys, "argv", ["eltlab", *arguments])
    try:
        command.run_command(verb.main, verb.usage)  # type: ignore[attr-defined]
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FIT_MISTAKES = {
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
    "evaluate_loops=[0]": "evaluate_loops=[0]: each must be at least 1",
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


@pytest.mark.parametrize("mistake", FIT_MISTAKES)
def test_fit_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed_in(fit, mistake.split(), monkeypatch) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and FIT_MISTAKES[mistake] in errors[0], printed.err
    assert "Traceback" not in printed.err and printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    runs = tmp_path_factory.mktemp("trained")
    fit.main([*TINY, f"runs_dir={runs}"])
    [config] = runs.rglob("config.yaml")
    return config.parent


RUN_MISTAKES = [
    (evaluate, [], "run=DIR is missing"),
    (evaluate, ["run=nowhere"], "run=nowhere: no config.yaml there"),
    (evaluate, ["run={run}", "loops=0"], "loops=0: give an integer of at least 1"),
    (evaluate, ["run={run}", "loops=[1,two]"], "loops=two: give an integer of at least 1"),
    (evaluate, ["run={run}", "loops=[4to0]"], "loops=4to0: give an integer of at least 1"),
    (evaluate, ["run={run}", "sampler.halting=-1"], "sampler.halting=-1.0: must be above 0"),
    (evaluate, ["run={run}", "loops=[]"], "loops=[]"),
    (evaluate, ["run={run}", "loops=[[1,2]]"], "loops=[1, 2] has 2 entries but sampler.steps=4"),
    (evaluate, ["run={run}", "loops=[[]]"], "loops=[]: give an integer of at least 1"),
    (evaluate, ["run={run}", "batch_size=7"], "batch_size=7: not a key of a trained run"),
    (evaluate, ["run={run}", "samples=5"], "error: samples=5: give at least two per class, 20"),
    (evaluate, ["run={run}", "samples=100001"], "give at most 100,000"),
    (evaluate, ["run={run}", "samples=many"], "samples=many"),
    (evaluate, ["run={run}", "seed=-1"], "seed=-1: must be at least 0"),
    (evaluate, ["run={run}\n"], "\\n: no config.yaml there"),
    (evaluate, ["run={run}", "sample=5"], "did you mean samples?"),
    (evaluate, ["run={run}", "optim.lr=1"], "optim.lr=1: not a key of a trained run"),
    (evaluate, ["run={run}", "sampler.steps=0"], "sampler.steps=0: must be at least 1"),
    (sample, ["run={run}", "count=0"], "count=0: must be in [1, 4096]"),
    (sample, ["run={run}", "labels=[10]"], "labels=[10]: give classes 0 to 9"),
    (sample, ["run={run}", "labels=[true]"], "labels=[True]: give classes 0 to 9"),
    (sample, ["run={run}", "seed=-1"], "seed=-1: must be at least 0"),
    (
        sample,
        ["run={run}", "count='1\n2'"],
        "count=1\\n2: Value '1\\n2' of type 'str' could not be",
    ),
    (sample, ["run={run}", "loops=[[1,2]]"], "loops=[1, 2] has 2 entries but sampler.steps=4"),
    (sample, ["run={run}", "loops=[1,2,4]", "count=2000"], "give at most 1365"),
    (sample, ["run={run}", "out=/dev/null/grid.png"], "/dev/null"),
    (sample, ["run={run}", "out=grid.jpg"], "end the name in .png"),
]


@pytest.mark.parametrize(("verb", "arguments", "message"), RUN_MISTAKES)
def test_mistake_about_a_run_is_one_line_and_changes_nothing(
    verb: object,
    arguments: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(trained)
    filled = [argument.format(run=trained) for argument in arguments]
    assert typed_in(verb, filled, monkeypatch) == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("error: ") and message in line
    assert printed.out == "" and everything(trained) == before and list(tmp_path.iterdir()) == []


def test_a_picture_is_not_written_over_a_folder(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "grid.png"
    out.mkdir()
    assert typed_in(sample, [f"run={trained}", "count=1", f"out={out}"], monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {out}: Is a directory"
    assert list(tmp_path.iterdir()) == [out] and list(out.iterdir()) == []


def test_a_run_keeps_its_name_wherever_its_folder_is(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "a=b" / "mine"
    shutil.copytree(trained, moved)
    link = tmp_path / "link"
    link.symlink_to(moved)
    monkeypatch.chdir(moved)
    for seed, folder in enumerate((f"'{moved}'", str(link), "."), start=7):
        assert typed_in(evaluate, [f"run={folder}", "loops=1", f"seed={seed}"], monkeypatch) == 0
    table = comparable(read(str(moved)))
    assert sorted(table["sample_seed"]) == [7, 8, 9]
    assert set(table["run"]) == {f"{trained.parent.name}/{trained.name}"}


class Evil:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch evil",))


def checkpoint_mistakes(path: Path, kind: str) -> str:
    """Breaks the checkpoint in one way; returns the expected message."""
    if kind == "missing":
        path.unlink()
        return "no checkpoint there; train the run first"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return "truncated or not a checkpoint"
    if kind == "empty":
        path.write_bytes(b"")
        return "truncated or not a checkpoint"
    if kind == "unsafe":
        torch.save({"state_dict": Evil(), "eltlab": {}}, path)
        return "not safe to unpickle"
    if kind == "foreign":
        torch.save({"model": torch.zeros(1)}, path)
        return "not an eltlab checkpoint"
    checkpoint = torch.load(path, weights_only=True)
    version = checkpoint["eltlab"]["code"]
    if kind == "version":
        del checkpoint["eltlab"]["meter"]
        torch.save(checkpoint, path)
        return f"written by eltlab {version}, without meter; use the run with that version"
    checkpoint["state_dict"] = {k: v[..., :1] for k, v in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    return f"a checkpoint of another architecture, written by eltlab {version}: "


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "empty", "unsafe", "foreign", "version", "architecture"]
)
@pytest.mark.parametrize("verb", [evaluate, sample, fit])
def test_bad_checkpoint_is_named(
    kind: str,
    verb: object,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if verb is fit and kind == "missing":
        pytest.skip("without a checkpoint, fit starts the run: that is no mistake")
    runs = tmp_path / "runs"
    shutil.copytree(trained.parents[1], runs)
    [config] = runs.rglob("config.yaml")
    message = checkpoint_mistakes(config.parent / "checkpoints" / "last.ckpt", kind)
    monkeypatch.chdir(tmp_path)
    before = everything(runs)
    arguments = [*TINY, f"runs_dir={runs}"] if verb is fit else [f"run={config.parent}"]
    assert typed_in(verb, arguments, monkeypatch) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert everything(runs) == before
    assert not (tmp_path / "evil").exists()


def test_evaluate_and_sample_as_typed(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert typed_in(evaluate, [f"run={run}", "loops=[1,2,4]", "samples=40"], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {run}"
    schedule = [f"run={run}", "sampler.loops=[2,2,1,1]", "samples=40"]
    assert typed_in(evaluate, schedule, monkeypatch) == 0
    from eltlab.runs.result_table import load

    table = load(run)
    rows = table[table["kind"] == "eval"]
    assert list(rows["loops"]) == [1, 2, 4, 1.5]
    assert rows["loop_schedule"].iloc[-1] == "[2, 2, 1, 1]"
    by_loops = rows.set_index("loops")["macs_per_sample"]
    assert by_loops[1.5] == (by_loops[1] + by_loops[2]) / 2

    out = tmp_path / "grid.png"
    asked = [f"run={run}", "loops=2", "count=6", "labels=[3,7]", f"out={out}"]
    assert typed_in(sample, asked, monkeypatch) == 0
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert typed_in(sample, asked, monkeypatch) == 0 and out.read_bytes() == first
    assert typed_in(sample, [*asked, "seed=1"], monkeypatch) == 0 and out.read_bytes() != first


def test_ctrl_c_says_how_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eltlab.fit", *TINY, "budget.images=10000000"]
    process = subprocess.Popen(
        [*command, "trainer.log_every=1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not [p for p in tmp_path.rglob("metrics.csv") if len(p.read_text().splitlines()) > 1]:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped; the same command resumes")
    assert "Traceback" not in errors


def test_load_gives_a_model_to_sample_from(trained: Path) -> None:
    import eltlab

    model = eltlab.load(trained)
    images = model.sample([1, 2, 3], loops=2, steps=4, seed=5)
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images[1:], model.sample([2, 3], loops=2, steps=4, seed=5, indices=[1, 2]))
    assert not torch.equal(images, model.sample([1, 2, 3], loops=2, steps=4, seed=6))


def test_help_needs_no_torch() -> None:
    """--help must be fast, so the slow imports must not happen; the time itself is a benchmark."""
    code = (
        "import sys; sys.argv = ['x', '--help']; import runpy; "
        "runpy.run_module('eltlab.fit', run_name='__main__'); "
        "assert not {'torch', 'lightning', 'pandas', 'sklearn'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m eltlab.fit" in done.stdout


def help_of(verb: object, arguments: str, monkeypatch, capsys) -> str:
    assert typed_in(verb, [*arguments.split(), "--help"], monkeypatch) == 0
    return capsys.readouterr().out


def test_help_shows_the_keys_of_the_chosen_objective_and_supervision(monkeypatch, capsys) -> None:
    shown = help_of(fit, "objective=diffusion supervision=deep", monkeypatch, capsys)
    for line in (
        "  objective.prediction=v       what the network predicts (v | epsilon | x)",
        "  supervision.inner=1.0  weight of the exits below the last",
        "  sampler.steps=64 ",
        "  optim.betas=[0.9, 0.99] ",
    ):
        assert line in shown
    assert "label_smoothing" not in shown and "supervision.distill" not in shown
    shown = help_of(fit, "supervision=random_depth loops=8", monkeypatch, capsys)
    assert "  supervision.law=uniform " in shown and "  loops=8 " in shown
    assert "objective.label_smoothing=0.1 " in shown
    assert "tokenizer={kmeans" in help_of(encode, "", monkeypatch, capsys)


def test_every_key_has_a_sentence_in_help(monkeypatch, capsys) -> None:
    """Including the verbs' own keys; only internal ones and labels that a group sets are hidden."""
    own = {evaluate: evaluate.Keys(), sample: sample.Keys(), plan: plan.Keys(), bench: bench.Keys()}
    own |= {sweep: SweepKeys(), dashboard: dashboard.Keys(), report: report.Keys()}
    own |= {export: export.Keys(), fit: compose([])}
    for verb, keys in own.items():
        shown = help_of(verb, "", monkeypatch, capsys)
        assert f"python -m {verb.__name__}" in shown
        for name, declared, _ in walk(keys):
            if declared.internal or is_set_by_group(name):
                assert f"  {name}=" not in shown
            else:
                assert declared.sentence and f"  {name}=" in shown, name


def test_a_mistake_before_help_is_one_line(monkeypatch, capsys) -> None:
    assert typed_in(fit, ["objectve=flow", "--help"], monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: unknown key objectve=flow: did you mean objective?\n"


def test_help_shows_no_password(monkeypatch, capsys) -> None:
    """The default of storage= comes from the environment and may contain a password."""
    monkeypatch.setenv("ELTLAB_STORAGE", "postgresql://me:secret@host/db")
    assert "secret" not in help_of(sweep, "", monkeypatch, capsys)


def test_sample_draws_a_block_of_rows_per_loop_count(trained: Path, tmp_path: Path, monkeypatch) -> None:
    saved = []

    def save_grid(path: Path, rows: list, names: list[str]) -> None:
        saved.append((rows, names))

    monkeypatch.setattr("eltlab.common.image_grids.save_grid", save_grid)
    common = [f"run={trained}", "count=4", f"out={tmp_path / 'grid.png'}"]
    for loops in ("[1,2,4]", "2", "[[2,2,1,1],4to1]"):
        assert typed_in(sample, [*common, f"loops={loops}"], monkeypatch) == 0
    (several, names), (single, no_names), (_, schedules) = saved
    assert names == ["1", "", "2", "", "4", ""] and no_names == ["", ""]
    assert schedules == ["[2, 2, 1, 1]", "", "4to1", ""]
    # The block for two loops shows the same pictures as two loops alone.
    assert all(torch.equal(*pair) for pair in zip(several[2:4], single, strict=True))


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


def test_elt_b_with_twelve_loops_as_typed(tmp_path: Path) -> None:
    """The README's command at a small budget, as a user types it, run to the end."""
    command = [sys.executable, "-m", "eltlab.fit", "model=elt_b", "loops=12"]
    small = ["budget.images=256", "batch_size=32", "metrics.samples=20", "evaluate_loops=[1,12]"]
    done = subprocess.run(
        [*command, *small, "trainer.grids=1", "sampler.steps=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("run: runs/digits-masked-elt_b-1x12-ilsd/")
    run = tmp_path / last.removeprefix("run: ")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["eltlab"]["images_seen"] == 256
    blocks = {k.split(".")[3] for k in checkpoint["state_dict"] if k.startswith("ema.stack.blocks")}
    assert blocks == {"0"} and checkpoint["state_dict"]["ema.token.weight"].shape[1] == 768
    assert cache_dir().is_dir()
