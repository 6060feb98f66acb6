"""Study files: what they mean, and what is refused."""

import subprocess
from functools import partial

import pytest
from conftest import fails
from studies import GRID, opened, written

from eltlab import sweep
from eltlab.cli import study_keys
from eltlab.common.errors import UserError
from eltlab.config.identity import identity
from eltlab.studies import run_study
from eltlab.studies.study import grid_trials, load_study
from eltlab.studies.study_file import SweepKeys

# --- the file -------------------------------------------------------------------------------------


def test_two_parameter_sets_with_the_same_run_are_one_trial(tmp_path):
    """With one loop every supervision is final."""
    trials = grid_trials(opened(tmp_path))
    names = [config.name for _, _, config in trials]
    assert [name.removeprefix("small/") for name in names] == [
        "loops1-final",
        "loops2-ilsd",
        "loops2-final",
        "loops4-ilsd",
        "loops4-final",
    ]
    assert len({identity(config) for _, _, config in trials}) == 5


def test_the_seeds_of_a_grid_follow_one_another(tmp_path):
    seeds = [seed for _, seed, _ in grid_trials(opened(tmp_path, changes={"seeds": [3, 1]}))]
    assert seeds == [3] * 5 + [1] * 5


def test_every_trial_trains_for_the_flops_of_the_twin_unless_images_are_matched(tmp_path):
    from eltlab.config.cost.flops import budget_flops
    from eltlab.config.cost.twins import twin

    study = opened(tmp_path)
    flops = {budget_flops(config) for _, _, config in grid_trials(study)}
    step = max(flops) / 4
    assert study.budget == budget_flops(twin(study.config({}, 0)))
    assert all(abs(each - study.budget) <= step / 2 for each in flops)
    images = opened(tmp_path, GRID + "matched: images\n")
    assert {config.budget.images for _, _, config in grid_trials(images)} == {32}


def test_budgets_may_be_searched_if_images_are_matched(tmp_path):
    text = "space:\n  budget.images: [32, 64, 128]\nmatched: images\nseeds: [0]\n"
    assert [t.config.images for t in grid_trials(opened(tmp_path, text))] == [32, 64, 128]


def test_constraints_exclude_parameters(tmp_path):
    text = "space:\n  loops: [1, 2, 3, 4]\nwhere:\n  - loops divides model.depth\n"
    trials = grid_trials(opened(tmp_path, text, changes={"seeds": [0]}))
    assert [trial.params["loops"] for trial in trials] == [1, 2, 4]


@pytest.mark.parametrize(
    ("space", "rule", "why"),
    [
        ("loops: [1, 2, 4]", "unique_layers >= 2", "fit derives it from other keys"),
        ("unique_layers: [1, 2]", "model.depth <= 4", r"it is unique_layers \* loops"),
        ("objective: [masked, diffusion]", "objective.label_dropout > 0", "objective of the space"),
        ("experiment: [demo]", "model.width > 0", "experiment of the space sets it"),
        ("loops: [1, 2]", "optim.warmup_images < budget.images", "matched=train_flops sets it"),
    ],
)
@pytest.mark.parametrize("sampler", ["grid", "random\ntrials: 2"])
def test_constraints_on_derived_keys_are_refused(tmp_path, space, rule, why, sampler):
    """The value in base is not that of a trial."""
    text = f"space:\n  {space}\nwhere: ['{rule}']\nsampler: {sampler}\nseeds: [0]\n"
    with pytest.raises(UserError, match=f"may differ between trials: {why}"):
        opened(tmp_path, text)


def test_constraints_may_name_what_all_trials_share(tmp_path):
    text = "space:\n  loops: [1, 2, 4]\nseeds: [0]\nwhere:\n"
    text += "  - model.depth / loops >= 2\n  - loops * model.width > model.mlp_width\n"
    trials = grid_trials(opened(tmp_path, text))
    assert [(trial.config.loops, trial.config.unique_layers) for trial in trials] == [(2, 2)]
    text = f"{text}  - budget.images > 8\nmatched: images\n"
    assert len(grid_trials(opened(tmp_path, text))) == 1


def test_an_arm_is_a_label_that_fit_does_not_see(tmp_path):
    text = "space:\n  arm:\n    short: {loops: [1]}\n    long: {loops: [2, 4]}\nseeds: [0]\n"
    study = opened(tmp_path, text)
    assert [config.name for _, _, config in grid_trials(study)] == [
        "small/short",
        "small/long-loops2",
        "small/long-loops4",
    ]


def test_a_run_that_is_measured_differently_is_another_trial(tmp_path):
    study = opened(tmp_path, "space:\n  sampler.steps: [2, 4]\nseeds: [0]\n")
    assert [trial.config.sampler.steps for trial in grid_trials(study)] == [2, 4]


def test_a_pruner_needs_validations(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.validations=0; remove one of the two"):
        opened(tmp_path, GRID + "pruner: median\n", overrides=["trainer.validations=0"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "objectives: {fd_classifier@2: minimize}",
            "objectives.fd_classifier@2: evaluate_loops=[1] gives small/loops1 no row at loops=2",
        ),
        (
            "pruner: median\nwatch: loss@2",
            "watch=loss@2: small/loops1 has loops=1 and no such exit",
        ),
    ],
)
def test_every_trial_has_what_its_study_is_judged_by(tmp_path, text, said):
    space = f"space:\n  loops: [2, 1]\nseeds: [0]\n{text}\n"
    with pytest.raises(UserError) as refused:
        grid_trials(opened(tmp_path, space))
    assert said in str(refused.value)
    assert len(grid_trials(opened(tmp_path, f"{space}where: ['loops > 1']\n"))) == 1


@pytest.mark.parametrize(
    "how", ["evaluate=false", "evaluate_loops=[1]", "sampler.loops=2to1"], ids=lambda how: how[:14]
)
def test_what_measures_no_trial_at_its_loops_is_refused(tmp_path, how):
    study = opened(tmp_path, "space:\n  loops: [2]\nseeds: [0]\n", overrides=[how])
    with pytest.raises(UserError) as refused:
        grid_trials(study)
    assert f"{how} gives {study.name}/loops2 no row at loops=2" in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed=1: the study sets it; seeds are in seeds="),
        ("name=x", "name=x: the study sets it"),
        ("loops=2", "small.yaml sets it in every trial; remove it"),
    ],
)
def test_an_override_that_no_trial_would_see_is_refused(tmp_path, override, said):
    assert said in fails(partial(opened, tmp_path, overrides=[override]))


def test_a_preset_and_overrides_make_studies_of_their_own(tmp_path):
    text = GRID + "presets:\n  quick:\n    base: ['batch_size=4']\n    seeds: [7]\n"
    quick = opened(tmp_path, text, preset="quick")
    assert quick.name == "small-quick" and quick.file.seeds == [7]
    assert quick.config({}, 7).batch_size == 4
    other = opened(tmp_path, text, overrides=["batch_size=16"])
    assert other.name.startswith("small-") and other.name != quick.name
    assert other.config({}, 0).batch_size == 16


def test_the_place_of_known_data_makes_no_other_study(tmp_path):
    def at(name, *places):
        return opened(tmp_path, overrides=[f"data={name}", "data.size=64", *places])

    here, there = (at("sprites", f"data.root={place}", f"data.workers={n}") for n, place in enumerate("ab"))
    assert here.name == there.name == at("sprites").name
    assert here.base.data.root != there.base.data.root
    assert [t.key for t in grid_trials(here)] == [t.key for t in grid_trials(there)]
    folders = [at("clips", f"data.root={place}", "data.classes=2") for place in "ab"]
    assert folders[0].name != folders[1].name
    keys = [{trial.key for trial in grid_trials(study)} for study in folders]
    assert len(keys[0]) == 5 and not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_mistakes_in_a_file_are_reported(tmp_path, text, said):
    if "space" not in text and "seeds" not in text:
        text = f"{GRID}{text}\n"
    with pytest.raises(UserError, match=said):
        grid_trials(opened(tmp_path, text))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("base", ["3", "experiment=demo", "[3]", "{experiment: demo}"])
@pytest.mark.parametrize("preset", [None, "quick"])
def test_a_base_that_is_no_list_is_refused(tmp_path, base, preset):
    path = tmp_path / "small.yaml"
    path.write_text(f"base: {base}\nspace: {{loops: [1]}}\npresets: {{quick: {{}}}}\n")
    with pytest.raises(UserError, match=r"base.* give a list of overrides, e.g. \[experiment=demo\]"):
        load_study(str(path), preset, [], str(tmp_path / "runs"), {})


def test_mistakes_on_the_command_line_are_reported(tmp_path):
    file = written(tmp_path, GRID)
    for arguments, said in (
        ([], "give one study"),
        (["loops_vs_dept"], "did you mean loops_vs_depth?"),
        ([file, "preset=quik"], "preset=quik"),
        ([file, "workers=-1"], "workers=-1: must be at least 0"),
        ([file, "lease=nan"], "lease=nan: must be a finite number"),
        ([file, "budgt.images=3"], "did you mean budget.images?"),
        ([file, "storage=sqlite:///x.db", "workers=2"], "sqlite"),
    ):
        with pytest.raises(UserError, match=said):
            sweep.main([*arguments, f"runs_dir={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


URL = "postgresql://u:s3cret@127.0.0.1:1/db?connect_timeout=5&application_name=a%2Cb"


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


def test_a_url_is_everything_after_storage(monkeypatch):
    """Also with a query, which the grammar of fit's overrides would split."""
    given = ["small", f"storage={URL}", "workers=2"]
    assert study_keys(given, SweepKeys())[1].storage == URL
    assert study_keys(["small", "storage=null"], SweepKeys())[1].storage is None
    monkeypatch.setenv("ELTLAB_STORAGE", URL)
    assert study_keys(["small"], SweepKeys())[1].storage == URL
    assert study_keys(["small", "storage="], SweepKeys())[1].storage is None


@pytest.mark.parametrize("given", [[f"storage={URL}"], []])
def test_workers_get_the_storage_from_the_environment(monkeypatch, given):
    started = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: started.update(rest, command=command))
    monkeypatch.setenv("ELTLAB_STORAGE", "" if given else URL)
    run_study.start_worker(1, ["small", *given, "workers=2"])
    assert started["command"][3:6] == ["small", "workers=2", "worker=1"]
    assert started["env"]["ELTLAB_STORAGE"] == URL
