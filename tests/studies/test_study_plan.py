"""What plan=true prints of a study: its arms, and what they cost."""

import pytest
from support.small_studies import GRID, TUNED, opened

from eltlab import sweep
from eltlab.common.text import format_si
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.measured_rates import rate_lines
from eltlab.studies import study_plan
from eltlab.studies.study import grid_trials
from eltlab.studies.study_plan import HEADERS, plan_lines

ARMS = ["loops1-final", "loops2-ilsd", "loops2-final", "loops4-ilsd", "loops4-final"]


def test_a_grid_has_a_line_per_arm_and_the_sum_over_all_trials(tmp_path):
    study = opened(tmp_path, changes={"seeds": [0, 1]})
    head, titles, *arms, total = plan_lines(study)[: 2 + len(ARMS) + 1]
    assert head == f"small: matched on {format_si(study.budget)} training FLOPs, in {study.folder}"
    assert titles.split() == " ".join(HEADERS).split()
    assert [arm.split()[0] for arm in arms] == ARMS
    assert [arm.split()[1:4] for arm in arms] == [[str(4 // int(arm[5])), "x", arm[5]] for arm in ARMS]
    flops = sum(budget_flops(trial.config) for trial in grid_trials(study))
    assert total.startswith(f"10 trials (seeds [0, 1]), {format_si(flops)} training FLOPs")


def test_arms_that_are_matched_on_images_train_for_equally_many(tmp_path):
    head, _, *lines = plan_lines(opened(tmp_path, f"{GRID}matched: images\n"))
    assert "matched on images" in head
    assert [line.split()[-2] for line in lines[: len(ARMS)]] == ["32"] * len(ARMS)


def test_the_time_of_a_plan_is_that_of_all_trials(tmp_path, monkeypatch):
    """It is shown only if the rate of this machine is known."""
    study, bill = opened(tmp_path, changes={"seeds": [0, 1]}), study_plan.timed_bill
    for seconds, training_time in ((None, ""), (30.0, ", 5 min of training one after the other")):
        monkeypatch.setattr(
            study_plan, "timed_bill", lambda *given, s=seconds: {**bill(*given), "train_seconds": s}
        )
        [total] = [line for line in plan_lines(study) if line.startswith("10 trials")]
        assert total.endswith(f"training FLOPs{training_time}")


def test_a_plan_says_which_rates_are_known(tmp_path):
    study = opened(tmp_path)
    machine = study_plan.find_machine(study.base.trainer.accelerator, study.base.trainer.precision)
    expected = rate_lines(study.base, machine)
    assert not expected or plan_lines(study)[-len(expected) :] == expected


@pytest.mark.parametrize("matched", ["train_flops", "images"])
def test_a_sampler_has_no_arms_yet(tmp_path, matched):
    text = "space:\n  optim.lr: {low: 0.001, high: 0.01}\nsampler: random\ntrials: 6\nseeds: [0, 1]\n"
    study = opened(tmp_path, f"{text}matched: {matched}\n")
    head, varies, rest = plan_lines(study)
    assert varies == "  optim.lr: 0.001 to 0.01"
    flops = 12 * (study.budget or budget_flops(study.base))
    assert head.startswith("small: matched on ")
    assert rest == f"6 trials x 2 seeds, about {format_si(flops)} training FLOPs"


def test_a_sampler_shows_which_keys_vary(tmp_path):
    text = "space:\n  supervision:\n    final: {}\n    ilsd: {supervision.min_loops: [1, 2]}\n"
    text += "  optim.lr: {low: 0.001, high: 0.01, log: true}\nsampler: random\ntrials: 2\nseeds: [0]\n"
    assert plan_lines(opened(tmp_path, text))[1:-1] == [
        "  supervision: final, ilsd",
        "    supervision.min_loops: 1, 2 (if supervision=ilsd)",
        "  optim.lr: 0.001 to 0.01, logarithmic",
    ]


def test_the_cost_of_tuning_is_planned(tmp_path):
    """Two arms x three rates x one seed, at half of the budget."""
    study = opened(tmp_path, TUNED + "  budget: 0.5\n")
    [line] = [line for line in plan_lines(study) if "tuning runs" in line]
    main = sum(budget_flops(trial.config) for trial in grid_trials(study))
    assert line.startswith("6 tuning runs before them (seeds [100], 0.5 of the budget), ")
    assert f", {format_si(0.75 * main)} training FLOPs: 75% more. " in line
    assert line.endswith("chooses among optim.lr 0.001, 0.002, 0.004")


def test_arms_that_only_measure_differently_are_tuned_once(tmp_path):
    axis = TUNED.replace("seeds", "  sampler.guidance: [1, 2]\nseeds", 1)
    one, both = (opened(tmp_path, text) for text in (TUNED, axis))
    [one, both] = ([line for line in plan_lines(study) if "tuning runs" in line] for study in (one, both))
    assert one == both and one[0].startswith("6 tuning runs")


def test_a_plan_creates_nothing(tmp_path, capsys):
    study = opened(tmp_path)
    sweep.main([str(tmp_path / "small.yaml"), f"runs_dir={tmp_path / 'runs'}", "plan=true"])
    assert capsys.readouterr().out.splitlines() == plan_lines(study)
    assert not (tmp_path / "runs").exists()


def test_arms_that_only_measure_differently_are_trained_once(tmp_path):
    axis = "  sampler.guidance: [1, 2]\n"
    one, both = (opened(tmp_path, f"space:\n  loops: [4]\n{more}seeds: [0, 1]\n") for more in ("", axis))
    [one, both] = ([line for line in plan_lines(study) if " trials (" in line] for study in (one, both))
    assert one[0].startswith("2 trials") and both[0].startswith("4 trials")
    assert one[0].partition(", ")[2].split("training")[0].split("]), ")[-1] in both[0]
