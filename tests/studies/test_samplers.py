"""What the samplers draw, and what a grid tells Optuna."""

from collections import deque
from statistics import median

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import Trial, TrialState, create_trial
from support.small_studies import GRID, filled, opened, queue_of

from eltlab.studies.samplers import POPULATION
from eltlab.studies.summary import best_trials


def test_a_worker_that_died_while_it_stored_a_draw_loses_nothing(tmp_path, monkeypatch):
    """Killed before each attribute it writes; the next worker takes over the same draw, with its name."""
    text = "space:\n  optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\nsampler: random\n"
    study = opened(tmp_path, f"{text}trials: 3\nseeds: [0]\n")
    write = Trial.set_user_attr
    for number, key in enumerate(("arm", "seeds", "cell")):

        def killed(trial, name, value, at=key):
            if name == at:
                raise KeyboardInterrupt
            write(trial, name, value)

        dying = queue_of(study, "dying", lease=0.0)
        monkeypatch.setattr(Trial, "set_user_attr", killed)
        with pytest.raises(KeyboardInterrupt):
            dying.claim()
        monkeypatch.undo()
        queue = queue_of(study)
        claimed = queue.claim()
        assert claimed.number == number and claimed.params == claimed.trial.params
        queue.finish(claimed, [1.0 + number])
    assert best_trials(queue)[-1].split()[:2] == ["0", queue.trials()[0].user_attrs["arm"]]


def test_what_a_sampler_draws_does_not_depend_on_who_asks(tmp_path):
    text = "space:\n  optim.lr: {low: 1.0e-4, high: 1.0e-2}\nsampler: random\ntrials: 6\nseeds: [0]\n"
    drawn = []
    for workers in (["one"], ["one", "two", "three"]):
        place = tmp_path / str(len(workers))
        place.mkdir()
        study = opened(place, text)
        queues = [queue_of(study, name) for name in workers]
        drawn.append([queues[n % len(queues)].claim().params["optim.lr"] for n in range(6)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 6


def searched(tmp_path, sampler: str, objectives: list[str], trials: int):
    """The trials of a search by two workers, which hold one each. Nothing is trained: the values are the
    distances of optim.lr from 0.3 and 0.4. Every ninth fails, and a quarter of the space is forbidden."""
    text = (
        "space:\n  optim.lr: {low: 0.0, high: 1.0}\n  loops: [1, 2, 4]\nwhere: ['optim.lr * loops <= 2']\n"
        f"sampler: {sampler}\ntrials: {trials}\nseeds: [0]\nobjectives: {{{', '.join(objectives)}}}\n"
    )
    study = opened(tmp_path, text)
    queues = [queue_of(study, name) for name in ("one", "two")]
    held = deque()
    while True:
        queue = queues[0]
        claimed = queue.claim()
        if claimed is not None:
            held.append((queue, claimed))
        if not held:
            return queue.trials()
        if len(held) == 2 or claimed is None:
            queue, claimed = held.popleft()
            off = [abs(claimed.params["optim.lr"] - best) for best in (0.3, 0.4)]
            if claimed.number % 9 == 4:
                queue.fail(claimed, "out of memory")
            else:
                queue.finish(claimed, off[: len(objectives)])
        queues.reverse()


@pytest.mark.integration
def test_tpe_learns(tmp_path):
    """After its random start, it draws from the good region, and not from what constraints forbid."""
    trials = searched(tmp_path, "tpe", ["fd_classifier: minimize"], 26)
    off = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE]
    assert median(off[12:]) < 0.5 * median(off[:10])
    later = trials[12:]
    assert sum("forbidden" in trial.user_attrs for trial in later) < 0.25 * len(later)


@pytest.mark.integration
def test_nsga2_breeds(tmp_path):
    """Its second generation has the genes of the first."""
    objectives = ["fd_classifier: minimize", "params_total: minimize"]
    trials = searched(tmp_path, "nsga2", objectives, 2 * POPULATION + 6)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    genes = [trial.params["optim.lr"] for trial in complete]
    first, second = genes[:POPULATION], genes[POPULATION + 2 :]  # two were drawn before it was complete
    assert len(set(first)) == POPULATION and len(second) >= POPULATION - 2
    assert sum(gene in first for gene in second) > 0.5 * len(second)


def test_a_grid_tells_optuna_its_cells_also_as_it_grows(tmp_path):
    """Optuna keeps the choices of a name forever; the bounds of a number may change."""
    queue = filled(opened(tmp_path, GRID.replace("[1, 2, 4]", "[2]")))
    assert [queue.claim().trial.params for _ in range(2)] == [
        {"loops": 2, "supervision": "ilsd"},
        {"loops": 2, "supervision": "final"},
    ]
    wider = filled(opened(tmp_path, GRID.replace("[ilsd, final]", "[ilsd, final, deep]")), "other")
    one, deep = (wider.claim().trial.params for _ in range(2))
    assert one.pop("loops") == 1 and deep.pop("loops") == 2
    [(name, value)] = deep.items()
    assert name.startswith("supervision (3 choices, ") and value == "deep"
    assert list(one) == [name]


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("supervision.distill", ["[1, 2]", "[0.5, 1, 2]", "[3]"]),
        ("supervision.max_loops", ["[null, 1]", "[1, 2]", "[2, 3, null]"]),
        ("supervision", ["[ilsd, final]", "[ilsd, final, deep]", "[ilsd, final, random_depth]"]),
        ("supervision", ["[ilsd, final]", "[final, ilsd]", "[final, deep]"]),
    ],
)
def test_a_grid_may_grow_in_any_way(tmp_path, key, choices):
    """Choices that become numbers or change their order are separate parameters to Optuna."""
    base = {"supervision.distill": "ilsd", "supervision.max_loops": "random_depth"}
    how = [f"supervision={base[key]}"] if key in base else []
    for number, each in enumerate(choices):
        text = f"space:\n  {key}: {each}\nseeds: [{number}]\n"
        queue = filled(opened(tmp_path, text, overrides=how), f"worker {number}")
        assert queue.left() == each.count(",") + 1
        while (claimed := queue.claim()) is not None:
            [(name, value)] = claimed.trial.params.items()
            assert name.startswith(key) and value == claimed.params[key]
            queue.finish(claimed, [1.0])


def test_parameters_that_optuna_refuses_stop_no_trial(tmp_path):
    queue = filled(opened(tmp_path, "space:\n  loops: [2, 4]\nseeds: [0]\n"))
    text = CategoricalDistribution(["2"])  # as another version may have stored it
    queue.optuna.add_trial(create_trial(params={"loops": "2"}, distributions={"loops": text}, value=1.0))
    assert [queue.claim().params for _ in range(2)] == [{"loops": 2}, {"loops": 4}]


def test_values_that_optuna_cannot_store_are_reported_as_text(tmp_path):
    queue = filled(opened(tmp_path, "space:\n  optim.betas: [[0.9, 0.95], [0.9, 0.99]]\nseeds: [0]\n"))
    claimed = queue.claim()
    assert claimed.trial.params == {"optim.betas": "[0.9, 0.95]"}
    assert claimed.params == {"optim.betas": [0.9, 0.95]}


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_sampler_draws_values_that_optuna_cannot_store_as_text(tmp_path, sampler, recwarn):
    """And draws it again if it is retried."""
    text = "space:\n  optim.betas: [[0.9, 0.95], [0.9, 0.99]]\n  loops: [2, 4]\nseeds: [0]\n"
    queue = queue_of(opened(tmp_path, f"{text}sampler: {sampler}\ntrials: 2\n"))
    claimed = [queue.claim() for _ in range(2)]
    for each in claimed:
        assert each.params["optim.betas"] in ([0.9, 0.95], [0.9, 0.99])
        assert each.trial.params["optim.betas"] == str(each.params["optim.betas"])
    queue.fail(claimed[1], "out of memory")
    queue.retry()
    assert queue.claim().params == claimed[1].params
    assert not [str(each.message) for each in recwarn if "persistent" in str(each.message)]
