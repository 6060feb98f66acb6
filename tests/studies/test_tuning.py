"""Tuning: which runs an arm is tuned by, and which candidate they choose."""

import math

import pytest
from support.small_studies import TUNED, opened

from eltlab.config.identity import identity
from eltlab.studies.study_file import Tune
from eltlab.studies.tuning import Candidate, Choice, candidate_loss, describe_tuning, tuned_arms

RATES = Tune({"optim.lr": [0.001, 0.002, 0.004]})


def choice(*losses: float | None, key: str = "optim.lr", values: tuple = (0.001, 0.002, 0.004)) -> Choice:
    return Choice([Candidate({key: value}, loss) for value, loss in zip(values, losses, strict=True)])


def test_every_arm_is_tuned_by_all_candidates_and_all_tuning_seeds(tmp_path):
    study = opened(tmp_path, f"{TUNED}  seeds: [100, 101]\n  budget: 0.5\n")
    arms = tuned_arms(study)
    assert [arm.name for arm in arms] == ["ilsd", "final"]
    for arm in arms:
        rates = [(t.config.optim.lr, t.config.seed) for t in arm.tuning]
        assert rates == [(rate, seed) for rate in (0.001, 0.002, 0.004) for seed in (100, 101)]
        assert [t.seed for t in arm.main] == [0, 1] * 3
        for trial in arm.tuning:
            config = trial.config
            assert config.data.tuning and not config.evaluate and config.trainer.validations == 1
            # The same folder whatever its values, and no trial's.
            assert config.name == f"small/tuning/{arm.name}"
        for trial in arm.main:
            config = trial.config
            assert not config.data.tuning and config.evaluate and config.name == f"small/{arm.name}"
        [images] = {t.config.images for t in arm.main}
        assert {t.config.images for t in arm.tuning} == {8 * math.ceil(images / 2 / 8)}
    runs = [identity(t.config) for arm in arms for t in arm.tuning + arm.main]
    assert len(set(runs)) == len(runs)


def test_the_lowest_loss_is_chosen_and_of_equal_ones_the_first():
    assert choice(0.3, 0.2, 0.4).chosen == Candidate({"optim.lr": 0.002}, 0.2)
    assert choice(0.3, 0.2, 0.2).chosen == Candidate({"optim.lr": 0.002}, 0.2)
    assert choice(None, 0.2, 0.1).chosen == Candidate({"optim.lr": 0.004}, 0.1)
    assert choice(None, None, None).chosen is None


def test_a_value_at_the_end_of_its_grid_is_reported():
    assert choice(0.3, 0.2, 0.4).at_edge(RATES) == []
    assert choice(0.1, 0.2, 0.4).at_edge(RATES) == choice(0.3, 0.2, 0.1).at_edge(RATES) == ["optim.lr"]
    assert choice(None, None, None).at_edge(RATES) == []
    # In any order; the best of words, or of one value, is no edge.
    unsorted = Tune({"optim.lr": [0.002, 0.004, 0.001]})
    assert choice(0.1, 0.2, 0.3, values=(0.002, 0.004, 0.001)).at_edge(unsorted) == []
    words = ("constant", "cosine", "x")
    assert choice(0.1, 0.2, 0.3, key="w", values=words).at_edge(Tune({"w": [*words]})) == []
    assert Choice([Candidate({"w": 1}, 0.1)]).at_edge(Tune({"w": [1]})) == []


@pytest.mark.parametrize(("by", "expected"), [("full", 0.35), ("mean", 0.45)])
def test_the_loss_of_a_candidate_is_the_mean_over_seeds_of_one_or_all_exits(by, expected):
    losses = [{"1": 0.5, "2": 0.3}, {"1": 0.6, "2": 0.4}]
    assert candidate_loss(losses, by) == pytest.approx(expected)
    assert candidate_loss([losses[0], None], by) is None


def test_a_choice_is_described_in_words():
    tune = Tune({"optim.lr": [1]}, [7, 8], 0.5, "mean")
    assert describe_tuning(tune) == (
        "held-out loss on a tenth of the training split, mean over exits, tuning seeds 7, 8, "
        "0.5 of the budget"
    )
    assert "of the last exit, tuning seed 100, 0.25 of" in describe_tuning(RATES)
    text = "optim.lr=0.001: 0.3, optim.lr=0.002: diverged, optim.lr=0.004: 0.25"
    assert choice(0.3, None, 0.25).text == text
