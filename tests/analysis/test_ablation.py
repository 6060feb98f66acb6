"""Paired differences, their intervals and corrections, and importance, against known values."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.analysis_commands import run
from support.made_up_rows import arm, row, table, unique

from eltlab.analysis import ablation
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows

PLAIN = [10.0, 14.0, 30.0]
FACTORS = [0.8, 0.9, 0.85]


def switched(**more) -> list[dict]:
    rows = [row("plain", 4, value, seed=seed) for seed, value in enumerate(PLAIN)]
    for seed, (value, factor) in enumerate(zip(PLAIN, FACTORS, strict=True)):
        rows.append(row("switch", 4, value * factor, seed=seed, **more))
    return rows


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by far more than arms, so an unpaired test would show nothing."""
    [line] = ablation.paired_differences(table(switched())).itertuples()
    difference = np.array(PLAIN) * (np.array(FACTORS) - 1)
    low, high = stats.t.interval(0.95, 2, loc=difference.mean(), scale=stats.sem(difference))
    assert (line.level, line.baseline, line.seeds) == ("switch", "plain", 3)
    assert line.difference == pytest.approx(difference.mean())
    assert line.plus_minus == pytest.approx((high - low) / 2)
    logs = np.log(FACTORS)
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert (line.ratio, line.ratio_low, line.ratio_high) == pytest.approx(
        tuple(np.exp([logs.mean(), low, high]))
    )
    assert line.p == line.p_holm == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)


def test_only_shared_seeds_count() -> None:
    rows = [*switched(), row("switch", 4, 1e9, seed=7), row("plain", 4, 1e-9, seed=8)]
    [line] = ablation.paired_differences(table(rows)).itertuples()
    assert line.seeds == 3 and line.ratio == pytest.approx(np.exp(np.log(FACTORS).mean()))
    strangers = table([row("plain", 4, 1.0), row("switch", 4, 1.0, seed=1)])
    with pytest.raises(UserError, match="no run with arm=plain shares its seed"):
        ablation.paired_differences(strangers)


def test_one_seed_has_no_interval() -> None:
    [line] = ablation.paired_differences(table([row("plain", 4, 10.0), row("switch", 4, 5.0)])).itertuples()
    assert (line.ratio, line.difference) == pytest.approx((0.5, -5))
    assert all(np.isnan(v) for v in (line.plus_minus, line.ratio_low, line.p, line.p_holm))


def test_holm_is_the_step_down_correction() -> None:
    """By hand: the sorted 0.01, 0.02, 0.04 times 3, 2 and 1, non-decreasing and at most 1."""
    found = ablation.correct_by_holm(np.array([0.04, 0.01, np.nan, 0.02]))
    assert found == pytest.approx([0.04, 0.03, np.nan, 0.04], nan_ok=True)
    assert list(ablation.correct_by_holm(np.array([0.6, 0.7]))) == [1.0, 1.0]


def factors() -> list[dict]:
    """Two keys: doubling the rate halves the distance, dropout multiplies it by 1.1; two seeds."""
    return [
        row(f"r{rate}-d{drop}", 4, 100 / rate * (1.1 if drop else 1.0) * (1 + seed), seed=seed,
            **{"cfg.optim.lr": rate, "cfg.model.dropout": drop, "cfg.seed": seed})
        for rate in (1, 2, 4) for drop in (0.0, 0.1) for seed in (0, 1)
    ]  # fmt: skip


def test_a_factor_is_compared_with_every_other_key_equal() -> None:
    lines = ablation.paired_differences(table(factors()), "optim.lr", "1").set_index("level")
    assert lines.loc["2", "ratio"] == pytest.approx(0.5)
    assert lines.loc["4", "ratio"] == pytest.approx(0.25) and lines.loc["4", "seeds"] == 2
    [line] = ablation.paired_differences(table(factors()), "model.dropout", "0.0").itertuples()
    assert line.ratio == pytest.approx(1.1)
    # If the design is unbalanced, a run without its partner is not compared.
    some = [each for each in factors() if (each["cfg.optim.lr"], each["cfg.model.dropout"]) != (4, 0.0)]
    [line] = ablation.paired_differences(table(some), "model.dropout", "0.0").itertuples()
    assert line.ratio == pytest.approx(1.1)


def test_importance_goes_to_the_keys_that_explain_the_variance() -> None:
    shares = ablation.importance(table(factors()))
    assert list(shares.index) == ["optim.lr", "model.dropout"]
    assert shares.sum() == pytest.approx(1) and shares["optim.lr"] > 0.9
    assert ablation.importance(table(switched())).empty  # no key differs but the name
    assert list(ablation.importance(table(factors()))) == list(shares)  # the same every time


def test_runs_are_compared_at_their_trained_loops_or_at_requested_ones() -> None:
    rows = table([*arm("plain", {2: 10.0, 4: 8.0}), *arm("switch", {2: 30.0, 4: 4.0})])
    assert ablation.paired_differences(rows)["ratio"].item() == pytest.approx(0.5)
    assert ablation.paired_differences(rows, loops=2)["ratio"].item() == pytest.approx(3.0)
    with pytest.raises(UserError, match="no run was measured at loops=7"):
        ablation.paired_differences(rows, loops=7)


def test_mistakes_name_the_fix() -> None:
    rows = table(switched())
    with pytest.raises(UserError, match=r"factor=optim\.lrr: did you mean optim.lr"):
        ablation.paired_differences(table(factors()), "optim.lrr", "1")
    with pytest.raises(UserError, match="baseline=plane: did you mean plain"):
        ablation.paired_differences(rows, baseline="plane")
    with pytest.raises(UserError, match="which is the baseline\\? Give baseline= one of a, b"):
        ablation.paired_differences(table([*arm("a", {4: 1.0}), *arm("b", {4: 1.0})]))
    with pytest.raises(UserError, match="nothing to compare"):
        ablation.paired_differences(table(arm("a", {4: 1.0})))


def test_a_figure_of_many_levels_shows_those_that_differ_most_and_says_so() -> None:
    many = [row(f"a{n:03}", 4, 10.0 * 1.01**n) for n in range(100)]
    figure = ablation.draw(table([row("plain", 4, 10.0), *many]))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == ablation.SHOWN and "a099" in names and "a000" not in names
    text = figure._supxlabel.get_text().replace("\n", " ")
    assert "The 40 of 100 levels that differ most, without: a000, a001, " in text


def test_the_only_arm_with_unique_layers_is_the_baseline() -> None:
    rows = table([*arm("looped", {4: 5.0}), *unique("twin", 8, 10.0)])
    assert ablation.paired_differences(rows)[["level", "baseline", "ratio"]].values.tolist() == [
        ["looped", "twin", pytest.approx(0.5)]
    ]


def test_unmatched_budgets_are_refused() -> None:
    """Levels must match in images or FLOPs, and a level must not stand for two arms."""
    longer = {"images_seen": 9000, "train_flops_total": 9e12}
    rows = [*arm("plain", {4: 5.0}), *arm("switch", {4: 4.0}, **longer)]
    with pytest.raises(UserError, match="switch was trained for 9k images and 9T FLOPs, plain for 1k"):
        ablation.paired_differences(table(rows))
    matched = [*arm("plain", {4: 5.0}), *arm("switch", {4: 4.0}, images_seen=9000)]
    assert len(ablation.paired_differences(table(matched))) == 1
    two = [each for each in factors() if each["cfg.model.dropout"] == 0.0]
    two += [{**each, "name": "other", "run": f"other/{each['seed']}"} for each in two[:1]]
    with pytest.raises(UserError, match=r"optim\.lr=1 stands for several arms \(.*other"):
        ablation.paired_differences(table(two), "optim.lr", "1")


def kernel_rows(values: list[float]) -> list[dict]:
    """Kernel distances of the baseline (5 at every seed, nearly) and of an arm."""
    rows = [row("plain", 4, None, seed=n, kd_classifier=5.0 + 0.1 * n) for n in range(len(values))]
    return rows + [row("switch", 4, None, seed=n, kd_classifier=v) for n, v in enumerate(values)]


@pytest.mark.parametrize("values", [[-0.1, 0.2, 0.3], [0.01, 0.2, 0.9]])
def test_distances_not_above_0_by_their_error_have_differences_but_no_ratios(values: list[float]) -> None:
    """Also if all of them are above 0, because ratios of values near 0 are noise."""
    rows = table(kernel_rows(values))
    [line] = ablation.paired_differences(rows).itertuples()
    differences = np.array(values) - [5.0, 5.1, 5.2]
    assert np.isnan([line.ratio, line.ratio_low, line.ratio_high]).all()
    assert line.difference == pytest.approx(differences.mean())
    assert line.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert (
        line.no_ratio == "kd_classifier of switch is not above 0 by its error, so only differences are shown"
    )
    [axes] = ablation.draw(rows).axes
    assert axes.get_xscale() == "linear" and "kd_classifier − that of plain" in axes.get_xlabel()
    assert ablation.paired_differences(table(kernel_rows([2.0, 2.1, 2.2])))["ratio"].item() < 0.5


def test_a_biased_metric_has_differences_and_says_why_it_has_no_ratios(tmp_path: Path) -> None:
    rows = [each | {"fd_classifier": each["heldout_loss"], "heldout_loss": None} for each in switched()]
    append_rows(tmp_path / "rows.jsonl", rows)
    done = run("ablation", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table_lines, reason = done.stdout.splitlines()[:2], done.stdout.splitlines()[2]
    assert "difference" in table_lines[0] and "ratio" not in table_lines[0]
    assert reason.startswith("no ratios: fd_classifier of 500 samples is biased by the number of samples")


def crossed(seeds: int = 2) -> list[dict]:
    """loops x supervision x learning rate. Each supervision has keys that others do not have."""
    own = {
        "final": {}, "ilsd": {"cfg.supervision.distill": 1.0, "cfg.supervision.weight.shape": "linear"},
        "random_depth": {"cfg.supervision.law": "uniform", "cfg.supervision.max_loops": None},
    }  # fmt: skip
    return [
        row(f"l{loops}-{name}-{rate}", loops, loops / rate * (1 + 0.1 * len(name)), seed=seed, trained=loops,
            layers=8 // loops, supervision=name,
            **{"cfg.loops": loops, "cfg.supervision.name": name, "cfg.optim.lr": rate, "cfg.seed": seed}
            | keys)
        for loops in (2, 4) for name, keys in own.items() for rate in (1e-3, 2e-3) for seed in range(seeds)
    ]  # fmt: skip


def test_loops_by_supervision_by_learning_rate() -> None:
    """Keys of other supervisions are missing, and columns have mixed types."""
    rows = table(crossed())
    [line] = ablation.paired_differences(rows, "optim.lr", "1e-3").itertuples()
    assert (line.level, line.ratio, line.seeds) == ("0.002", pytest.approx(0.5), 2)
    [line] = ablation.paired_differences(rows, "loops", "2").itertuples()
    assert (line.level, line.ratio) == ("4", pytest.approx(2.0))
    lines = ablation.paired_differences(rows, "supervision.name", "final").set_index("level")
    assert lines["ratio"].to_dict() == pytest.approx({"ilsd": 1.4 / 1.5, "random_depth": 2.2 / 1.5})
    shares = ablation.importance(rows)
    assert set(shares.index) == {"loops", "supervision.name", "optim.lr"} and shares.sum() == pytest.approx(1)


def test_rows_without_the_factor_are_no_level() -> None:
    rows = table(crossed())
    rows.loc[(rows["supervision"] == "ilsd") & (rows["cfg.optim.lr"] > 1e-3), "cfg.supervision.distill"] = 2.0
    with pytest.raises(UserError, match=r"no run with supervision\.distill=1 shares its seed"):
        ablation.paired_differences(rows, "supervision.distill", "1.0")


@pytest.mark.integration
def test_equal_arms_are_seldom_separated_and_arms_3_sd_apart_nearly_always() -> None:
    """200 tables of six seeds each. The statement of a table: p_holm < 0.05, corrected for its two rows.

    The tables' other statement, that the interval of "÷ twin" excludes 1, is the same test without the
    correction for several rows; headline and ablation share it.
    """
    dice = np.random.default_rng(0)
    level, sd = 0.2, 0.001  # as the held-out loss of the digits
    separated = {"equal": 0, "worse": 0}
    for _ in range(200):
        means = {"plain": level, "equal": level, "worse": level + 3 * sd}
        rows = [row(name, 4, dice.normal(mean, sd), seed=n) for name, mean in means.items() for n in range(6)]
        lines = ablation.paired_differences(table(rows), baseline="plain").set_index("level")
        for name in separated:
            separated[name] += lines.loc[name, "p_holm"] < 0.05
    assert separated["equal"] <= 18 and separated["worse"] >= 180


def test_importance_takes_numbers_as_numbers() -> None:
    """All values of a random search are distinct; keys treated as names would each explain everything."""
    dice = np.random.default_rng(0)
    draws = dice.uniform(size=(40, 3))
    rows = [
        row(f"t{n}", 4, float(np.exp(3 * a + 0.5 * b)), **{
            "cfg.optim.lr": a, "cfg.optim.weight_decay": b, "cfg.ema.decay": c,
            "cfg.model.width": 64 + n % 2, "cfg.model.heads": n % 2})
        for n, (a, b, c) in enumerate(draws)
    ]  # fmt: skip
    shares = ablation.importance(table(rows))
    assert shares.index[0] == "optim.lr" and shares["optim.lr"] > 0.8
    assert shares["ema.decay"] < 0.1 and "model.width + model.heads" in shares


def test_a_list_may_be_a_key() -> None:
    rows = factors()
    for each in rows:
        each["cfg.optim.betas"] = [0.9, 0.99] if each["cfg.model.dropout"] else [0.9, 0.95]
    assert len(ablation.paired_differences(table(rows), "optim.lr", "1")) == 2


def test_the_figure_shows_ratios_with_intervals() -> None:
    [axes] = ablation.draw(table(switched())).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["switch"]
    line = ablation.paired_differences(table(switched())).iloc[0]
    assert list(axes.lines[0].get_xdata()) == [line["ratio_low"], line["ratio_high"]]
    assert any(text.get_text().startswith("p = ") for text in axes.texts)


def test_an_arm_that_shares_no_seed_with_the_baseline_is_named() -> None:
    rows = [row("plain", 4, 1.0), row("other", 4, 2.0), row("stranger", 4, 1.0, seed=1)]
    text = ablation.draw(table(rows))._supxlabel.get_text().replace("\n", " ")
    assert "Not comparable: stranger" in text


def test_levels_of_different_losses_have_no_ratio() -> None:
    keys = ("mse", "l1")
    rows = [row(loss, 4, 1.0, heldout_protocol=loss, **{"cfg.objective.weight": loss}) for loss in keys]
    with pytest.raises(UserError, match=r"measure 2 different losses \(objective.weight\)"):
        ablation.paired_differences(table(rows), "objective.weight", "mse")


def tuned_study() -> list[dict]:
    """Two supervisions by two widths; each arm has its own learning rate, and says so."""
    return [
        row(f"{name}-w{width}", 4, value * width, seed=seed, supervision=name, width=width,
            tuned=f'{{"optim.lr": {rate}}}',
            **{"cfg.supervision.name": name, "cfg.model.width": width, "cfg.optim.lr": rate,
               "cfg.tuned": f'{{"optim.lr": {rate}}}', "cfg.tuned_on": f"{name} {width}"})
        for name, value in (("final", 1.0), ("ilsd", 0.5))
        for width, rate in ((64, 0.001 * value), (128, 0.004 * value)) for seed in (0, 1)
    ]  # fmt: skip


def test_tuned_keys_are_not_compared() -> None:
    """Each arm has its own values of them, so otherwise no run would have a partner."""
    rows = table(tuned_study())
    [line] = ablation.paired_differences(rows, "supervision.name", "final").itertuples()
    assert (line.level, line.ratio, line.seeds) == ("ilsd", pytest.approx(0.5), 2)
    assert set(ablation.importance(rows).index) == {"supervision.name", "model.width"}


def test_arms_at_different_settings_have_differences_but_no_ratios() -> None:
    rows = [row("plain", 4, 0.1, seed=n, steps=8, kd_classifier=5.0 + 0.1 * n) for n in (0, 1, 2)]
    rows += [row("fast", 4, 0.1, seed=n, steps=4, kd_classifier=7.0 + 0.1 * n) for n in (0, 1, 2)]
    [line] = ablation.paired_differences(table(rows), metric="kd_classifier").itertuples()
    assert line.no_ratio == "fast: settings differ and were not chosen: steps" and np.isnan(line.ratio)
    assert line.difference == pytest.approx(2.0)
    # The held-out loss draws no samples, and a setting that is the factor may differ.
    assert ablation.paired_differences(table(rows))["ratio"].item() == pytest.approx(1.0)
    own = table([each | {"cfg.sampler.steps": each["steps"]} for each in rows])
    lines = ablation.paired_differences(own, "sampler.steps", "8", "kd_classifier")
    assert lines["ratio"].item() == pytest.approx(7 / 5, rel=0.01)
