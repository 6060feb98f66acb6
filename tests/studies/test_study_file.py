"""Study files: their mistakes are reported."""

import pytest
from support.small_studies import GRID, TUNED, opened

from eltlab.common.errors import UserError
from eltlab.studies.study import grid_trials, load_study
from eltlab.studies.study_file import Tune
from eltlab.studies.tuning import tuned_arms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {loops: [3]}", "loops=3 does not divide"),
        ("space: {loop: [2]}", "unknown key loop=2: did you mean loops?"),
        ("spaces: {loops: [2]}", "unknown key spaces: did you mean space?"),
        ("space: {seed: [2]}", "space.seed: the study sets it"),
        (
            "space: {budget.images: [32, 64]}",
            "space.budget.images: matched=train_flops gives .*; write matched: images",
        ),
        ("sampler: grids", "sampler=grids: choose one of grid"),
        ("sampler: tpe", "sampler=tpe: give trials: N"),
        ("trials: 5", "remove trials"),
        ("pruner: mean", "pruner=mean: choose one of none"),
        ("matched: flops", "matched=flops: choose one of"),
        ("objectives: {fid: lower}", "objectives.fid=lower: choose one of minimize"),
        (
            "objectives: {fid: minimize}",
            "rows will have no fid; metrics.extractor=inception gives it",
        ),
        ("objectives: {fd_classifer: minimize}", "did you mean fd_classifier?"),
        ("objectives: {accuracy@all: maximize}", "write a loop count after @"),
        ("pruner: median\nwatch: accuracy", "watch=accuracy: choose one of loss, gap"),
        ("presets: {quick: {seed: [1]}}", "presets.quick: unknown key seed: did you mean seeds?"),
        ("presets: {quick: [1]}", "presets.quick: not a mapping"),
        ("space: {}", "space is empty"),
        ("space: {loops: []}", "give a list of choices"),
        ("sampler: random\ntrials: 2\nspace: {loop: [2]}", "did you mean loops?"),
        (
            "sampler: random\ntrials: 2\nwhere: ['loops == 3']\nspace: {loops: [2, 4]}",
            "allows none of 1000 random draws from the space",
        ),
        (
            "sampler: random\ntrials: 2\nwhere: ['width <= 0.01']\nspace: {width: {low: 0, high: 1.0}}",
            "allows [0-9]+ of 1000 random draws from the space, and a sampler requires 20; narrow",
        ),
        (
            "sampler: random\ntrials: 2\npruner: median\nspace: {loops: [2, 4]}\nseeds: [0, 1]",
            "trains all of seeds=\\[0, 1\\] one after the other",
        ),
        ("space: {loops: [2]}\nseeds: []", "give distinct whole numbers"),
        ("space: {loops: [2]}\nseeds: [1, 1]", "give distinct whole numbers"),
        ("seeds: [a]", r"seeds\[0\]: Value 'a'.* could not be converted"),
        ("seeds: 3", r"seeds=3: give a list of whole numbers, e.g. \[0, 1, 2\]"),
        ("trials: many", "trials: Value 'many'.* could not be converted"),
        ("where: loops > 1", r"where=loops > 1: give a list of constraints"),
        ("where: [1]", "where: 1 is not text; give a list of constraints"),
        ("objectives: fid", "objectives=fid: give metrics and directions"),
        ("presets: [quick]", r"presets=\['quick'\]: give names and the keys that differ"),
        ("presets: {1: {seeds: [1]}}", "presets.1: a name must be text; write '1' in quotes"),
        (
            "presets: {quick: {base: experiment=demo}}",
            "presets.quick: base=experiment=demo: give a list of overrides",
        ),
        ("hours: -1", "hours=-1.0: must be above 0"),
        ("where: ['loops == 9']\nspace: {loops: [2]}", "forbids the whole space"),
        (
            "pruner: median\nobjectives: {accuracy: maximize, params_total: minimize}",
            "a study with several objectives cannot be pruned",
        ),
        ("space: [", "not YAML"),
        ("- a", "not YAML|not a mapping"),
    ],
)
def test_mistakes_in_a_file_are_reported(tmp_path, text, message):
    if "space" not in text and "seeds" not in text:
        text = f"{GRID}{text}\n"
    with pytest.raises(UserError, match=message):
        grid_trials(opened(tmp_path, text))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune: {keys: {optim.lr: [1, 2]}, seeds: [0]}", r"tune.seeds=\[0\]: give distinct .* seeds=\[0\]"),
        ("tune: {keys: {optim.lr: [1, 2]}, seeds: []}", r"tune.seeds=\[\]: give distinct whole numbers"),
        ("tune: {keys: {optim.lr: [1, 2]}, budget: 2}", r"tune.budget=2.0: must be in \[0.01, 1\]"),
        ("tune: {keys: {optim.lr: [1, 2]}, by: best}", "tune.by=best: choose one of full, mean"),
        ("tune: {keys: {optim.lr: [1, 2]}, seed: [1]}", "unknown key tune.seed: did you mean seeds?"),
        ("tune: {keys: {optim.lr: {low: 1, high: 2}}}", "tune.keys.optim.lr=.*: give a list of candidates"),
        ("tune: {keys: {optim.lr: []}}", "tune.keys.optim.lr=.*: give a list of choices"),
        ("tune: {keys: {sampler.guidance: [1, 2]}}", "sampler.guidance does not affect training"),
        ("tune: {keys: {objective.label_smoothing: [0, 0.1]}}", "changes what the held-out loss is"),
        ("tune: {keys: {objective: [masked, diffusion]}}", "tune.keys.objective changes what the held-out"),
        ("tune: {keys: {data.patch: [1, 2]}}", "tune.keys.data.patch changes what .* move it into space"),
        ("tune: {keys: {optim.l: [1]}}", "did you mean optim.lr?"),
        ("tune: {seeds: [7]}", "tune.keys is empty; give a key of fit and its candidates"),
        ("tune: [optim.lr]", r"tune=\['optim.lr'\]: give null, or keys"),
        ("tune: {keys: {seed: [1]}}", "tune.keys.seed: the study sets it"),
        ("tune: {keys: {budget.images: [32]}}", "tune.keys.budget.images: the study sets it"),
        ("tune: {keys: {data.tuning: [true]}}", "tune.keys.data.tuning: the study sets it"),
        ("tune: {keys: {loops: [1]}}", "tune.keys.loops: the space sets it too"),
        ("tune: {keys: {optim.lr: [1]}}\nwhere: ['optim.lr < 2']", "where: 'optim.lr < 2': tune sets"),
        ("tune: {keys: {optim.lr: [1]}}\npruner: median", "tune: pruner=median would compare"),
        ("tune: {keys: {optim.lr: [1]}}\nsampler: random\ntrials: 2", "tune: sampler=random draws values"),
        ("tune: {keys: {optim.lr: [1]}}\nspace: {data.tuning: [true]}", "data.tuning: tune sets it; remove"),
    ],
)
def test_mistakes_in_tune_are_reported(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        tuned_arms(opened(tmp_path, text if "space" in text else f"{GRID}{text}\n"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("base", ["3", "experiment=demo", "[3]", "{experiment: demo}"])
@pytest.mark.parametrize("preset", [None, "quick"])
def test_a_base_that_is_no_list_is_refused(tmp_path, base, preset):
    path = tmp_path / "small.yaml"
    path.write_text(f"base: {base}\nspace: {{loops: [1]}}\npresets: {{quick: {{}}}}\n")
    with pytest.raises(UserError, match=r"base.* give a list of overrides, e.g. \[experiment=demo\]"):
        load_study(str(path), preset, [], str(tmp_path / "runs"), {})


def test_a_preset_may_replace_or_remove_the_tuning(tmp_path):
    other = "{tune: {keys: {optim.lr: [0.1]}, by: mean}}"
    text = f"{TUNED}presets:\n  other: {other}\n  none: {{tune: null}}\n"
    own, other, none = (opened(tmp_path, text, preset).file.tune for preset in (None, "other", "none"))
    assert own == Tune({"optim.lr": [0.001, 0.002, 0.004]}, [100], 0.25, "full")
    assert other == Tune({"optim.lr": [0.1]}, [100], 0.25, "mean") and none is None
