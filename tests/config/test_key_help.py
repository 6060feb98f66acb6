"""What --help says about the keys of each verb."""

from support.command_line import typed_in

from eltlab import bench, dashboard, encode, evaluate, export, fit, plan, report, sample, sweep
from eltlab.config.keys import walk
from eltlab.config.parsing import is_set_by_group
from eltlab.runs.compose_config import compose
from eltlab.studies.study_file import SweepKeys


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


def test_help_shows_no_password(monkeypatch, capsys) -> None:
    """The default of storage= comes from the environment and may contain a password."""
    monkeypatch.setenv("ELTLAB_STORAGE", "postgresql://me:secret@host/db")
    assert "secret" not in help_of(sweep, "", monkeypatch, capsys)
