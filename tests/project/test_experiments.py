"""The experiments of conf/: those of the paper, and one per switch of the loop."""

from dataclasses import asdict

import pytest
from support.clip_files import pan, write
from support.paper_rows import ROWS
from support.paths import ROOT
from support.plans import lines
from support.stacks import ALL, SWITCHES

from eltlab.analysis import paper
from eltlab.analysis.chosen_settings import choose_settings
from eltlab.analysis.points import name_arms
from eltlab.analysis.recipes import choose_recipe, recipe_experiment
from eltlab.common.package_info import package_folder
from eltlab.config.parsing import options_of
from eltlab.evaluation import heldout_loss
from eltlab.model.backbone import build_backbone
from eltlab.model.layers import Attention
from eltlab.runs import result_table, row_files
from eltlab.runs.compose_config import compose
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit as run_fit

singles = pytest.mark.parametrize("switch", ALL)


@singles
def test_each_switch_has_an_experiment_that_turns_it_on_and_names_its_command(switch):
    text = (package_folder("conf") / "experiment" / "anatomy" / f"{switch}.yaml").read_text()
    assert f"python -m eltlab.fit experiment=anatomy/{switch}\n" in text and "arXiv" in text
    plain, config = compose([]), compose([f"experiment=anatomy/{switch}"])
    changed = asdict(config.model).items() - asdict(plain.model).items()
    assert {key for key, _ in changed} == set(SWITCHES[switch])
    assert config.loops == plain.loops and config.model.depth == plain.model.depth
    net = build_backbone(config)
    assert len([m for m in net.modules() if isinstance(m, Attention)]) == (
        config.model.prelude + config.unique_layers + config.model.coda
    )


def test_every_row_is_a_file_and_every_file_a_row():
    files = options_of(package_folder("conf") / "experiment" / "paper")
    assert sorted(ROWS) == files


@pytest.mark.parametrize("name", ROWS)
def test_every_file_opens_with_its_command_and_its_numbers(name):
    """`make results` writes them."""
    row, _, ours = ROWS[name]
    text = paper.experiment_file(row).read_text()
    assert text == paper.header_comment(row, ours) + paper.without_header(text)
    assert f"python -m eltlab.plan experiment=paper/{name}" in text


def test_the_settings_are_the_papers():
    masked, diffusion, video = (ROWS[n][1] for n in ("elt_l_8x3", "elt_dit_8x4", "elt_video_6x4"))
    assert (masked.optim.betas, masked.optim.weight_decay) == ([0.9, 0.96], 0.045)
    assert (diffusion.optim.betas, diffusion.optim.weight_decay) == ([0.9, 0.99], 0.01)
    assert {c.optim.lr for c in (masked, diffusion, video)} == {1e-4}
    assert (masked.batch_size, diffusion.batch_size, video.batch_size) == (512, 512, 256)
    assert (masked.data.tokens, diffusion.data.tokens, video.data.tokens) == (256, 1024, 1024)
    assert (masked.steps, diffusion.steps, video.steps) == (675_616, 500_000, 10_059)
    # Warm-up of independent ports and of MAGVIT, and averages as long as a decay of 0.9999 per step.
    warmup = [round(c.optim.warmup * c.steps, -1) for c in (masked, diffusion, video)]
    assert warmup == pytest.approx([10_000, 10_000, 5_000], rel=1e-3)
    averages = [c.ema.length * c.steps for c in (masked, diffusion)]
    assert averages == pytest.approx([10_000, 10_000], rel=1e-3)
    assert (masked.sampler.steps, diffusion.sampler.steps, video.sampler.steps) == (24, 512, 12)
    assert (diffusion.sampler.guidance, video.sampler.guidance) == (3.0, 1.0)
    assert (masked.model.dropout, diffusion.model.dropout) == (0.1, 0.0)
    assert diffusion.model.cond_width == 1024 and video.objective.label_dropout == 0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "analysis" / "data").glob("recipe*.jsonl")), ids=lambda p: p.stem
)
def test_a_recipe_is_what_its_study_found(path):
    rows = name_arms(choose_settings(result_table.load(path))[0])
    found, first = choose_recipe(rows), rows.iloc[0]
    config = compose([f"experiment={recipe_experiment(path.stem)}"])
    assert (config.batch_size, config.optim.lr) == (found.batch, found.rate)
    assert (config.data.name, config.objective.name) == (first["data"], first["objective"])
    if "cfg.data.patch" in first:
        assert config.data.patch == first["cfg.data.patch"]


def test_a_row_is_changed_like_any_configuration():
    config = compose(["experiment=paper/elt_dit_8x4", "loops=16", "sampler.guidance=1"])
    assert (config.unique_layers, config.loops) == (2, 16)


@pytest.mark.parametrize("experiment", options_of(package_folder("conf") / "experiment"))
def test_every_experiment_can_be_planned(capsys, experiment):
    text = lines(capsys, f"experiment={experiment}")
    assert text[0] == compose([f"experiment={experiment}"]).name
    assert "training FLOPs " in "".join(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magvit_l", "elt_video_6x4", "elt_video_6x6"])
def test_the_papers_video_experiments_run(name, tmp_path, monkeypatch):
    """With their data, objective, sampler and supervision, but a network that trains in seconds."""
    monkeypatch.setattr(heldout_loss, "PAIRS", 8)  # of 4,096 passes of 1,024 tokens
    for label in ("a", "b"):
        for n in range(12):
            write(tmp_path / "videos" / label / f"{n}.avi", pan(16, seed=n, width=160, height=128))
    config = compose(
        [
            *(f"experiment=paper/{name}", f"data.root={tmp_path / 'videos'}", "data.classes=2"),
            *("data.codebook=16", "data.workers=0", "model.width=16", "model.heads=2"),
            *("model.mlp_width=16", "batch_size=2", "budget.images=4", "metrics.samples=4"),
            *("metrics.reference=4", "metrics.extractor=classifier", "trainer.grids=0"),
            *("trainer.validations=0", f"runs_dir={tmp_path / 'runs'}", "trainer.accelerator=cpu"),
            "evaluate_loops=[1]",
        ]
    )
    assert config.data.tokens == 1024
    run_fit(config)
    rows = row_files.read_rows(Run.of(config).rows)
    assert [row["steps"] for row in rows if row["kind"] == "eval"] == [config.sampler.steps]
