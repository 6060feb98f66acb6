"""Studies: the trials of a file, and the values that judge them."""

from functools import partial
from pathlib import Path

import pytest
from support.errors import fails
from support.small_studies import GRID, opened, queue_of
from support.sweeps import run_sweep

from eltlab.common.errors import UserError
from eltlab.config.cost.flops import budget_flops
from eltlab.config.identity import identity
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.studies.study import grid_trials


def test_a_trial_of_a_study_runs_on_one_device(tmp_path: Path) -> None:
    study = opened(tmp_path, overrides=["trainer.devices=2"])
    with pytest.raises(UserError, match="a trial of a study runs on one device; remove both keys"):
        grid_trials(study)


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
    study = opened(tmp_path, overrides=["budget.images=3200"])
    arms = {config.name.partition("/")[2]: config for _, _, config in grid_trials(study)}
    twin = arms.pop("loops1-final")
    assert twin.images == 3200 and budget_flops(twin) == study.budget
    step = study.budget / 400
    assert all(abs(budget_flops(config) - study.budget) <= step / 2 for config in arms.values())
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
        ("loops: [1, 2]", "batch_size < budget.images", "matched=train_flops sets it"),
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


@pytest.mark.parametrize(
    ("space", "names"),
    [
        ("sampler.guidance: [1, 2]\n  loops: [2, 4]", ["loops2", "loops4", "loops2", "loops4"]),
        ("sampler.steps: [2, 4]\n  metrics.samples: [20, 40]", ["base"] * 4),
        ("arm:\n    plain: {}\n    guided: {sampler.guidance: [2]}", ["base", "base"]),
        ("loops: [4]\n  measured:\n    a: {}\n    b: {evaluate_loops: [[4, 4to1]]}", ["loops4", "loops4"]),
        ("arm:\n    plain: {loops: [2]}\n    guided: {sampler.guidance: [2]}", ["plain", "guided"]),
    ],
)
def test_keys_that_only_measure_are_not_in_the_name_of_a_run(tmp_path: Path, space: str, names: list) -> None:
    """Trials that differ in such keys only are one run, but each has its own arm."""
    study = opened(tmp_path, f"space:\n  {space}\nseeds: [0]\n")
    trials = grid_trials(study)
    assert [str(trial.config.name).removeprefix("small/") for trial in trials] == names
    assert len({study.arm(trial.params, trial.config) for trial in trials}) == len(names)
    assert len({Run.of(trial.config).folder for trial in trials}) == len(set(names))


@pytest.mark.integration
def test_one_training_is_measured_at_each_value_of_a_key_that_only_measures(tmp_path: Path) -> None:
    text = "space:\n  sampler.guidance: [1, 3]\nseeds: [0]\nobjectives: {fd_classifier: minimize}\n"
    run_sweep(tmp_path, text, "workers=2")
    study = opened(tmp_path, text)
    trials = queue_of(study).trials()
    assert [trial.user_attrs["arm"] for trial in trials] == ["guidance1", "guidance3"]
    [checkpoint] = study.folder.rglob("last.ckpt")
    last = {
        row["guidance"]: row["fd_classifier"]
        for row in read_rows(checkpoint.parents[1] / "rows.jsonl")
        if row["kind"] == "eval" and row["loops"] == row["loops_train"]
    }
    assert len(set(last.values())) == 2
    assert [trial.values for trial in trials] == [[last[1.0]], [last[3.0]]]
    logs = "".join(path.read_text() for path in sorted((study.folder / "logs").iterdir()))
    assert logs.count("finished before, at ") == 1


SEARCH = "sampler: random\ntrials: 2\n"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("space: {loops: [2, 4]}", [], "heldout_loss"),
        ("space: {objective.label_dropout: [0, 0.1]}", [], "heldout_loss"),
        ("space: {objective.label_smoothing: [0, 0.1]}", [], "kd_classifier"),
        ("space: {objective: [masked, diffusion]}", [], "kd_classifier"),
        ("space: {arm: {large: {data.patch: [2]}, small: {}}}", [], "kd_classifier"),
        ("space: {data.codebook: [8, 16]}", ["metrics.extractor=inception"], "kid"),
        (f"{SEARCH}space: {{loops: [2, 4]}}", [], "kd_classifier"),
        (f"{SEARCH}space: {{loops: [2, 4]}}", ["metrics.extractor=inception"], "kid"),
        (f"{SEARCH}space: {{loops: [2, 4]}}", ["data.tuning=true"], "heldout_loss"),
        (f"{SEARCH}space: {{data.patch: [1, 2]}}", ["data.tuning=true"], "kd_classifier"),
    ],
)
def test_the_held_out_loss_judges_trials_that_it_can_compare(tmp_path, text, overrides, expected):
    """It must mean the same in all trials, and a search must not choose by the test split."""
    study = opened(tmp_path, f"{text}\nseeds: [0]\n", overrides=overrides)
    assert study.file.objectives == {expected: "minimize"}
    explicit = f"{text}\nseeds: [0]\nobjectives: {{heldout_loss@2: minimize}}\n"
    if expected == "heldout_loss":
        opened(tmp_path, explicit, overrides=overrides)
    else:
        why = "changes what the held-out loss is" if "space: {loops" not in text else "data.tuning=true"
        with pytest.raises(UserError, match=f"objectives.heldout_loss@2: .*{why}.*; or give {expected}"):
            opened(tmp_path, explicit, overrides=overrides)


def test_a_pruner_needs_validations(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.validations=0; remove one of the two"):
        opened(tmp_path, GRID + "pruner: median\n", overrides=["trainer.validations=0"])


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_every_trial_has_what_its_study_is_judged_by(tmp_path, text, message):
    space = f"space:\n  loops: [2, 1]\nseeds: [0]\n{text}\n"
    with pytest.raises(UserError) as refused:
        grid_trials(opened(tmp_path, space))
    assert message in str(refused.value)
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
    ("override", "message"),
    [
        ("seed=1", "seed=1: the study sets it; seeds are in seeds="),
        ("name=x", "name=x: the study sets it"),
        ("loops=2", "small.yaml sets it in every trial; remove it"),
    ],
)
def test_an_override_that_no_trial_would_see_is_refused(tmp_path, override, message):
    assert message in fails(partial(opened, tmp_path, overrides=[override]))


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


@pytest.mark.integration
def test_values_are_those_of_the_rows(tmp_path):
    text = "space:\n  loops: [2, 4]\nseeds: [0]\n"
    run_sweep(tmp_path, text)
    study = opened(tmp_path, text)
    trials = queue_of(study).trials()
    assert len(trials) == 2
    for trial in trials:
        run = study.config(trial.user_attrs["cell"], 0)
        [row] = [
            r for r in read_rows(Run.of(run).rows) if r["kind"] == "eval" and r["loops"] == r["loops_train"]
        ]
        assert trial.values == [row["heldout_loss"]] and not left_to_measure(Run.of(run))


@pytest.mark.integration
def test_a_sampler_averages_over_its_seeds(tmp_path):
    text = (
        "space:\n  loops: [2, 4]\nsampler: random\ntrials: 1\nseeds: [0, 1]\n"
        "objectives: {fd_classifier: minimize, params_total: minimize}\n"
    )
    run_sweep(tmp_path, text)
    study = opened(tmp_path, text)
    [trial] = queue_of(study).trials()
    values = study.values([study.config(trial.user_attrs["cell"], seed) for seed in (0, 1)])
    assert trial.values == values and values[1] == int(values[1])
