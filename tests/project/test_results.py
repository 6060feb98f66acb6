"""The committed studies: what docs/results.md claims holds in the rows, and its tables are theirs."""

from pathlib import Path

import pandas as pd
import pytest
from support.analysis_commands import run
from support.paths import ROOT

from eltlab.analysis import anytime, dynamics
from eltlab.analysis.comparable_rows import comparable
from eltlab.runs.result_table import load
from eltlab.studies.study_file import known_studies


@pytest.fixture(params=["masked", "diffusion"])
def study(request: pytest.FixtureRequest) -> tuple[Path, pd.DataFrame]:
    path = ROOT / "analysis" / "data" / f"anytime_{request.param}.jsonl"
    return path, comparable(load(path))


def arm(rows: pd.DataFrame, name: str, loops: int) -> pd.Series:
    """fd_classifier by seed."""
    chosen = rows[rows["name"].str.endswith(f"-{name}") & (rows["loops"] == loops)]
    assert sorted(chosen["seed"]) == [0, 1, 2]
    return chosen.set_index("seed")["fd_classifier"]


def test_half_the_loops_of_the_elastic_model_are_nearly_as_good_as_all(study: tuple) -> None:
    _, rows = study
    assert (arm(rows, "elastic", 2) - arm(rows, "elastic", 4) < 7).all()


def test_half_the_loops_of_the_vanilla_model_are_not(study: tuple) -> None:
    _, rows = study
    assert (arm(rows, "vanilla", 2) > 700).all() and (arm(rows, "vanilla", 4) < 50).all()


def test_the_twin_is_the_best_arm_at_equal_compute(study: tuple) -> None:
    _, rows = study
    twin = arm(rows, "twin", 1).mean()
    assert twin < arm(rows, "elastic", 4).mean() and twin < arm(rows, "vanilla", 4).mean()


def test_the_arms_differ_in_nothing_else(study: tuple) -> None:
    _, rows = study
    assert rows["protocol"].nunique() == rows["depth"].nunique() == 1
    assert rows["images_seen"].unique().tolist() == [192_000]
    differing = [
        key.removeprefix("cfg.")
        for key in rows.columns
        if key.startswith("cfg.") and rows[key].astype(str).nunique() > 1
    ]
    arms = {"seed", "name", "loops", "unique_layers", "evaluate_loops"}
    assert {key for key in differing if not key.startswith("supervision.")} <= arms


# --- supervision ----------------------------------------------------------------------------------


@pytest.fixture(params=["digits", "fashion_mnist"])
def supervision(request: pytest.FixtureRequest) -> pd.DataFrame:
    path = ROOT / "analysis" / "data" / f"supervision_{request.param}.jsonl"
    return comparable(load(path))


def values(rows: pd.DataFrame, loops: int) -> pd.DataFrame:
    """fd_classifier: one column per arm, one row per seed."""
    chosen = rows[rows["loops"] == loops]
    arms = chosen["name"].str.partition("-")[2]
    table = chosen.assign(arm=arms).pivot(index="seed", columns="arm", values="fd_classifier")
    assert list(table.index) == [0, 1, 2] and table.notna().all(axis=None)
    return table


def test_supervision_is_compared_at_equal_images_and_at_equal_flops(
    supervision: pd.DataFrame,
) -> None:
    images = supervision.groupby("name")["images_seen"].unique()
    assert all(len(counts) == 1 for counts in images)
    equal_images = images[~images.index.str.endswith("-flops")]
    assert {int(counts[0]) for counts in equal_images} == {64_000}
    flops = supervision.groupby("name")["train_flops_total"].first()
    final = flops[flops.index.str.endswith("-final")].iloc[0]
    for name, value in flops.items():
        if not name.endswith("random_depth"):
            assert abs(value / final - 1) < 0.03


def test_only_the_vanilla_loop_needs_all_its_loops(supervision: pd.DataFrame) -> None:
    half = values(supervision, 2)
    lost = half - values(supervision, 4)
    assert (lost["final"] > 500).all() and (lost.drop(columns="final") < 75).all(axis=None)
    if half["final"].mean() < 1000:  # the digits, of which the numbers are quoted
        assert (half["final"] > 600).all() and (half.drop(columns="final") < 46).all(axis=None)


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_at_equal_flops_random_depth_leads_below_full_loops(supervision: pd.DataFrame, loops: int) -> None:
    """It leads at every seed."""
    found = values(supervision, loops)
    for arm in ("final", "ilsd", "deep"):
        assert (found["random_depth-flops"] < found[arm]).all()


def test_at_full_loops_random_depth_leads_in_the_mean(supervision: pd.DataFrame) -> None:
    found = values(supervision, 4).mean()
    assert found.idxmin() == "random_depth-flops"


def test_at_equal_images_the_best_at_full_loops_depends_on_the_data() -> None:
    best = {}
    for data in ("digits", "fashion_mnist"):
        rows = comparable(load(ROOT / "analysis" / "data" / f"supervision_{data}.jsonl"))
        best[data] = values(rows, 4).drop(columns="random_depth-flops").mean().idxmin()
    assert best == {"digits": "final", "fashion_mnist": "deep"}


TABLES = ["anytime_masked", "anytime_diffusion", "supervision_digits", "supervision_fashion_mnist"]


@pytest.mark.parametrize("name", [*TABLES, "schedules"])
def test_the_tables_of_the_documentation_are_those_of_the_rows(name: str, tmp_path: Path) -> None:
    done = run("anytime", "out=figure.pdf", name, cwd=tmp_path)
    documented = (ROOT / "docs" / "results.md").read_text()
    *table, _ = done.stdout.splitlines()
    assert table, done.stderr
    for line in table:
        assert line.rstrip() in documented


def test_fid_falls_by_more_than_two_sample_seeds_differ() -> None:
    rows = load(ROOT / "analysis" / "data" / "cifar.jsonl")
    fid = rows.pivot(index="images_seen", columns="sample_seed", values="fid")
    assert list(fid.index) == [6_400, 64_000] and list(fid.columns) == [0, 1]
    assert rows["protocol"].nunique() == 1 and (rows["samples"] == 1000).all()
    spread = (fid.max(axis=1) - fid.min(axis=1)).max()
    assert fid.loc[6_400].min() - fid.loc[64_000].max() > spread
    documented = (ROOT / "docs" / "results.md").read_text()
    for value in rows["fid"]:
        assert f"{value:.2f}" in documented


# --- the quick studies ----------------------------------------------------------------------------


QUICK = sorted((ROOT / "analysis" / "data").glob("*_quick.jsonl"))
STUDIES = [*QUICK, ROOT / "analysis" / "data" / "anytime_small.jsonl"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_tables_of_the_studies_are_those_of_the_rows(path: Path) -> None:
    done = run("study", path)
    documented = (ROOT / "docs" / "results.md").read_text()
    assert done.stdout and all(f"    {line}\n" in documented for line in done.stdout.splitlines())


def quick(name: str) -> pd.DataFrame:
    """The mean of fd_classifier over seeds: one row per arm, one column per loop count."""
    rows = comparable(load(ROOT / "analysis" / "data" / f"{name}_quick.jsonl"))
    arms = rows["name"].str.partition("/")[2]
    return rows.assign(arm=arms).pivot_table("fd_classifier", "arm", "loops")


def test_every_study_has_its_rows() -> None:
    assert [path.stem.removesuffix("_quick") for path in QUICK] == known_studies()


def test_at_equal_flops_every_halving_of_the_unique_layers_costs_quality() -> None:
    found = quick("loops_vs_depth")
    for how in ("final", "ilsd"):
        full = [found.loc["loops1-final", 1], *(found.loc[f"loops{n}-{how}", n] for n in (2, 4, 8))]
        assert full == sorted(full)
    # ILSD is the better of the two with one loop, and behind with all of 4 or 8.
    for loops in (4, 8):
        assert found.loc[f"loops{loops}-ilsd", 1] < 0.25 * found.loc[f"loops{loops}-final", 1]
        assert found.loc[f"loops{loops}-ilsd", loops] > found.loc[f"loops{loops}-final", loops]


def test_the_fixed_warm_up_is_a_different_share_of_runs_of_equal_flops() -> None:
    share = {}
    for name in ("anytime", "block_size"):
        rows = load(ROOT / "analysis" / "data" / f"{name}_quick.jsonl")
        share[name] = (rows["cfg.optim.warmup_images"] / rows["images_seen"]).agg(["min", "max"]).round(2)
    assert list(share["anytime"]) == [0.08, 0.33] and share["block_size"]["max"] > 1


def test_what_else_the_quick_studies_say() -> None:
    found = quick("anytime")
    assert found.min(axis=1).idxmin() == "unique-unique_layers2"
    assert all(found.loc[f"vanilla-loops{n}", n] < found.loc["elastic", n] for n in (2, 3, 4))
    blocks = quick("block_size").min(axis=1)
    assert blocks.idxmin() == "width48-unique_layers4-loops1"
    for width in (48, 64):
        four = [f"width{width}-unique_layers{n}-loops{4 // n}" for n in (4, 2, 1)]
        assert blocks[four].idxmin() == four[0]
    anatomy = quick("loop_anatomy")[4]
    assert (anatomy.idxmin(), anatomy.idxmax()) == ("exclusive_attention", "residual_scale")
    assert set(quick("supervision").idxmin()) == {"random_depth"}
    assert quick("pareto").min(axis=1).idxmin() == "width32-unique_layers2-loops3"


def held_out(name: str) -> pd.DataFrame:
    """The mean held-out loss over levels: one row per arm and images seen, one column per exit."""
    paths = sorted((ROOT / "analysis" / "data" / name).rglob("validation.csv"))
    losses = {
        path.parts[-3]: pd.read_csv(path).groupby(["images", "exit"])["loss"].mean().unstack()
        for path in paths
    }
    return pd.concat(losses, names=["arm"])


def test_what_a_first_look_at_imagenette_says() -> None:
    losses = held_out("imagenette_quick")
    first, last = losses.groupby("arm").first(), losses.groupby("arm").last()
    assert (last[1] < first[1]).all()  # all learn
    twin, vanilla, elastic = (last.loc[arm] for arm in ("loops1-final", "loops4-final", "loops4-ilsd"))
    assert twin[1] < vanilla[4] < elastic[4]
    assert elastic[1] - elastic[4] < 0.01 < 0.06 < vanilla[1] - vanilla[4]
    rows = load(ROOT / "analysis" / "data" / "imagenette_quick.jsonl")
    fid = rows.loc[rows["kind"] == "eval", "fid"]
    assert fid.min() >= 326 and fid.max() <= 335
    longer = load(ROOT / "analysis" / "data" / "imagenette_fit.jsonl")
    measured = longer[longer["kind"] == "eval"]
    assert list(measured["fid"]) == sorted(measured["fid"], reverse=True)  # it falls with the loops
    assert measured["fid"].iloc[-1] < fid.min()
    floors = pd.concat([rows, longer]).query("kind == 'tokenizer'")
    assert floors["protocol"].nunique() == floors["fid"].nunique() == 1
    documented = (ROOT / "docs" / "results.md").read_text()
    for value in [*measured["fid"], floors["fid"].iloc[0]]:
        assert f"{value:.4g}" in documented


def test_what_a_first_look_at_sprites_says() -> None:
    found = quick("sprites_loops")
    elastic, vanilla = found.loc["elastic"], found.loc["vanilla"]
    assert elastic.idxmin() == vanilla.idxmin() == 4  # the trained count: more loops gain nothing
    assert elastic[[2, 3, 5, 6]].max() < 3810 and round(elastic[4]) == 3556
    assert [round(vanilla[n]) for n in (4, 6)] == [3352, 9561] and vanilla[1] > 10_000
    rows = load(ROOT / "analysis" / "data" / "sprites_loops_quick.jsonl")
    floor = rows.loc[rows["kind"] == "tokenizer", "fd_classifier"]
    assert floor.nunique() == 1 and 0.95 * floor.iloc[0] < found.loc["unique", 1] < floor.iloc[0]
    fit = load(ROOT / "analysis" / "data" / "sprites_fit.jsonl").set_index("loops")
    measured = fit[fit["kind"] == "eval"]
    assert measured["fvd"].idxmax() == measured["fd_classifier"].idxmax() == 1
    documented = (ROOT / "docs" / "results.md").read_text()
    assert all(f"{value:.4g}" in documented for value in fit["fvd"])


def final_losses() -> pd.DataFrame:
    """The held-out loss of anytime_small at the end of training: one row per arm and seed, one column per
    exit."""
    runs = dynamics.select_runs(load(ROOT / "analysis" / "data" / "anytime_small.jsonl"))
    lines = dynamics.read_run_files(runs, "validation.csv")
    lines = lines[lines["images"] == lines.groupby("arm")["images"].transform("max")]
    return lines.groupby(["arm", "seed", "exit"])["loss"].mean().unstack()


def test_what_elasticity_costs() -> None:
    table = load(ROOT / "analysis" / "data" / "anytime_small.jsonl")
    rows = comparable(table)
    arms = rows["name"].str.partition("/")[2]
    found = rows.assign(arm=arms).pivot_table("fd_classifier", "arm", "loops")
    elastic = found.loc["elastic"]
    apart = [
        found.loc["unique-unique_layers2", 1],
        *(found.loc[f"vanilla-loops{n}", n] for n in (2, 3, 4)),
    ]
    assert all(elastic[n] > other for n, other in enumerate(apart, start=1))
    assert elastic[6] < 1.01 * elastic[4] and 1.05 < elastic[8] / elastic[4] < 1.1
    unique = [found.loc[f"unique-unique_layers{n}", 1] for n in (2, 4, 6, 8)]
    assert max(unique) < 1.1 * min(unique)
    assert anytime.elasticity_tax(table).empty  # fd_classifier is biased
    losses = final_losses()
    documented = (ROOT / "docs" / "results.md").read_text()
    for name, line in losses.groupby("arm").mean(numeric_only=True).iterrows():
        cells = " ".join(f"{value:.4f}" for value in line.dropna())
        assert f"    {name:<21} {cells}" in documented
    trained = ["unique-unique_layers2", "vanilla-loops2", "vanilla-loops3", "vanilla-loops4"]
    above = pd.DataFrame({n: losses[n]["elastic"] / losses[n][name] for n, name in enumerate(trained, 1)})
    assert (above > 1).all(axis=None) and list((100 * (above.mean() - 1)).round()) == [17, 11, 8, 5]
    shallow = losses[1]["unique-unique_layers2"]
    assert all((shallow < losses[1][f"unique-unique_layers{n}"]).all() for n in (6, 8))
    assert shallow.mean() < losses[1]["unique-unique_layers4"].mean()
    moved = (
        dynamics.relative_updates(table).set_index(["arm", "loops", "loop", "step"])["update"].sort_index()
    )
    for loop in (2, 3, 4):
        assert moved["elastic", 4, loop, 31] > 1.2 * moved["elastic", 4, loop, 0]
        assert moved["vanilla-loops4", 4, loop, 31] < 0.9 * moved["vanilla-loops4", 4, loop, 0]
