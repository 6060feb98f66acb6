"""The page of the report: its numbers are those of the table, and it works offline in a real browser."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from support.commands import run
from support.html_tables import Tables
from support.made_up_rows import arm, row, table, unique, vanilla
from support.small_studies import written

from eltlab.analysis.metrics import UNBIASED, choose_metric
from eltlab.analysis.page import name_protocols, render_page, split_sections
from eltlab.common.text import format_si

STUDY = """
space:
  loops: [1, 2]
  supervision: [ilsd, final]
seeds: [0, 1]
"""


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"[\d,]+\.\d+", text)]


@pytest.mark.integration
def test_the_numbers_of_the_page_are_the_tables_and_the_slider_is_there(tmp_path: Path, page: Any) -> None:
    path, runs = tmp_path / "report.html", f"runs_dir={tmp_path / 'runs'}"
    swept = run("sweep", written(tmp_path, STUDY), runs, "workers=1")
    assert swept.returncode == 0, swept.stderr
    done = run("report", runs, f"out={path}")
    assert done.stdout.splitlines()[-1] == f"report: {path}", done.stderr
    sheet = pd.read_csv(tmp_path / "runs" / "small" / "table.csv")
    rows = sheet[sheet["kind"] == "eval"]
    tables = Tables(path.read_text()).found
    check_headline(tables["headline"][0], rows[rows["loops"] == rows["loops_train"]])
    check_points(tables["points"][0], rows)
    # Both looped arms can be chosen, and each has the twin next to it.
    page.goto(path.as_uri())
    assert page.locator("select option").all_inner_texts() == ["loops2-final", "loops2-ilsd"]
    assert "its unique-layer twin" in page.locator(".pair").inner_text()
    assert not page.said


def check_headline(cells: list[list[str]], rows: pd.DataFrame) -> None:
    titles, *lines = cells
    assert titles[0] == "arm" and len(lines) == rows["name"].nunique() == 3
    metric = choose_metric(rows)
    twin = rows[rows["loops_train"] == 1].set_index("seed")[metric]
    for line in map(dict, (zip(titles, line, strict=True) for line in lines)):
        own = rows[rows["name"] == f"small/{line['arm']}"]
        first = own.iloc[0]
        assert line["layers x loops"] == f"{first['unique_layers']} x {first['loops_train']}"
        for title, column in (("parameters", "params_total"), ("MACs per sample", "macs_per_sample"),
                              ("training FLOPs", "train_flops_total")):  # fmt: skip
            assert line[title] == format_si(first[column])
        assert line["seeds"] == "2"
        values = own.set_index("seed")[metric]
        mean, half = numbers(line[metric])
        assert mean == pytest.approx(values.mean(), abs=0.005)
        assert half == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem(values), abs=0.005)
        if metric not in UNBIASED:
            assert "÷ twin" not in line
        elif line["arm"] == "loops1-final":
            assert line["÷ twin"] == ""
        else:
            ratio = np.exp((np.log(values) - np.log(twin)).mean())
            assert numbers(line["÷ twin"])[0] == pytest.approx(ratio, abs=0.005)


def check_points(cells: list[list[str]], rows: pd.DataFrame) -> None:
    titles, *lines = cells
    metric = choose_metric(rows)
    means = rows.groupby(["name", "loops"])[metric].mean()
    assert len(lines) == len(means)
    for line in map(dict, (zip(titles, line, strict=True) for line in lines)):
        expected = means[f"small/{line['arm']}", float(line["loops"])]
        assert numbers(line[metric])[0] == pytest.approx(expected, abs=0.005)


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_samples_of_clips_move(tmp_path: Path, page: Any) -> None:
    folder = tmp_path / "e" / "samples" / "aaaa"
    folder.mkdir(parents=True)
    for loops in (1, 4):
        frames = [Image.new("L", (8, 4), 60 * n) for n in range(3)]
        frames[0].save(folder / f"loops_{loops:03}.gif", save_all=True, append_images=frames[1:])
    path = tmp_path / "report.html"
    path.write_text(page_of(arm("elastic", {1: 40.0, 4: 10.0}, folder=str(tmp_path / "e"))))
    page.goto(path.as_uri())
    image = page.locator(".pair img").first
    assert image.get_attribute("src").startswith("data:image/gif;base64,")
    assert image.evaluate("image => image.naturalWidth") == 8
    assert not page.said


def tiled(tmp_path: Path, name: str, counts: list[int], **more: Any) -> dict[str, Any]:
    """A folder with one tile per loop count, each in a different grey; returns the columns for its rows."""
    folder = tmp_path / name / "samples" / "aaaa"
    folder.mkdir(parents=True)
    for loops in counts:
        Image.new("L", (8, 4), 20 * loops).save(folder / f"loops_{loops:03}.png")
    return {"folder": str(tmp_path / name), **more}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two sections, one with samples."""
    tmp_path = tmp_path_factory.mktemp("page")
    rows = [
        *arm("elastic", {1: 40.0, 2: 20.0, 4: 10.0, 6: 11.0}, **tiled(tmp_path, "e", [1, 2, 4, 6])),
        *vanilla("vanilla", {2: 90.0, 4: 9.0}, **tiled(tmp_path, "v", [2, 4])),
        *unique("twin", 8, 8.0, **tiled(tmp_path, "t", [1])),
        *arm("other<b>", {4: 5.0}, study="else", protocol="bbbb", protocol_text='{"samples": 9}'),
    ]
    path = tmp_path / "report.html"
    path.write_text(page_of(rows))
    return path


FIGURE_SIZES = "[...document.querySelectorAll('.drawing img')].map(i => [i.width, i.naturalWidth])"


def page_of(rows: list[dict[str, Any]]) -> str:
    return render_page(table(rows), "made-up rows")


def shown(browser_page: Any) -> list[str]:
    """The captions of the visible pictures."""
    return browser_page.locator(".pair figure:visible strong").all_inner_texts()


def grey(browser_page: Any) -> int:
    """The grey of the first visible picture, from its pixels on the screen."""
    picture = browser_page.locator(".pair figure:visible img").first.screenshot()
    pixels = Image.open(io.BytesIO(picture)).convert("L")
    return pixels.getpixel((pixels.width // 2, pixels.height // 2))


@pytest.mark.integration
def test_the_slider_moves_the_picture_by_keyboard(made: Path, page: Any) -> None:
    page.goto(made.as_uri())
    assert shown(page) == ["elastic, 4 loops", "its unique-layer twin"]  # the pair of equal compute
    assert grey(page) == 80
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.type") != "range":
        page.keyboard.press("Tab")
    steps = [("Right", 120, "6 loops (trained for 4)"), ("Left", 80, "4 loops")]
    steps += [("Left", 40, "2 loops"), ("Left", 20, "1 loop"), ("Left", 20, "1 loop")]
    for key, expected, loops in steps:
        page.keyboard.press(f"Arrow{key}")
        assert shown(page) == [f"elastic, {loops}", "its unique-layer twin"]
        assert grey(page) == expected
        assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == loops
    captions = page.locator(".pair figure:visible .quiet").all_inner_texts()
    assert (
        captions[0].startswith("heldout_loss 40.00 (no interval), 2M MACs")
        and "heldout_loss 8.00" in captions[1]
    )
    page.locator("select").select_option("vanilla")
    assert shown(page) == ["vanilla, 4 loops", "its unique-layer twin"] and grey(page) == 80
    page.locator("input[type=range]").fill("0")
    assert shown(page)[0] == "vanilla, 2 loops" and grey(page) == 40


@pytest.mark.integration
def test_the_page_loads_nothing_and_logs_nothing(made: Path, page: Any) -> None:
    page.goto(made.as_uri())
    page.wait_for_load_state("networkidle")
    assert [url for url in page.requested if not url.startswith("data:")] == [made.as_uri()]
    assert page.said == []
    sizes = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(sizes) > 8 and all(done and width > 0 for done, width in sizes)
    assert page.evaluate("[...document.images].every(i => i.alt)")


@pytest.mark.integration
def test_the_page_fits_a_phone(made: Path, page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(made.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # Figures keep a readable size and scroll sideways.
    sizes = page.evaluate(FIGURE_SIZES)
    assert sizes and all(width == natural >= 480 for width, natural in sizes)
    touch = page.locator("input[type=range]").bounding_box()
    assert touch["x"] >= 0 and touch["x"] + touch["width"] <= 360


@pytest.mark.integration
def test_text_is_equally_large_in_all_figures(made: Path, page: Any) -> None:
    """Figures are shown in their own size, whatever their number of panels, and fit the page."""
    page.goto(made.as_uri())
    sizes = page.evaluate(FIGURE_SIZES)
    assert len({width for width, _ in sizes}) > 1
    assert all(width == natural <= 1088 for width, natural in sizes)


@pytest.mark.integration
def test_a_name_is_text_and_never_markup(made: Path) -> None:
    assert "other<b>" not in made.read_text() and "other&lt;b&gt;" in made.read_text()


@pytest.mark.integration
def test_each_study_and_protocol_is_a_section(made: Path) -> None:
    rows = [*arm("a", {4: 5.0}), *arm("b", {4: 6.0}, protocol="bbbb")]
    texts = {"aaaa": '{"samples": 1000, "sampler.steps": 8}', "bbbb": '{"samples": 500, "sampler.steps": 8}'}
    rows = [each | {"protocol_text": texts[each["protocol"]]} for each in rows]
    assert [(title, protocol) for title, _, protocol in split_sections(table(rows))] == [
        ("made-up: 500 samples", "bbbb"),
        ("made-up: 1,000 samples", "aaaa"),
    ]
    headlines = Tables(made.read_text()).found["headline"]
    assert [line[0] for line in headlines[1][1:]] == ["elastic", "vanilla", "twin"]
    assert [line[0] for line in headlines[0][1:]] == ["other<b>"]


def named(*protocols: dict[str, Any]) -> list[str]:
    """The names of protocols in the order of their sections."""
    texts = [json.dumps(each) for each in protocols]
    rows = pd.DataFrame({"protocol": [f"id{n}" for n in range(len(texts))], "protocol_text": texts})
    return list(name_protocols(rows).values())


def test_protocols_are_named_by_what_differs_in_natural_order() -> None:
    inception, classifier = "inception-fid-helper-1cfe0306e40e, kid 100x1000", "classifier-347fa0d68f61"
    other = "classifier-d8eb79b8a0e9"
    assert named({"samples": 9}) == named({}) == [""]
    assert named({"sampler.steps": 64, "labels": "balanced"}, {"sampler.steps": 8, "labels": "balanced"}) == [
        "8 steps",
        "64 steps",
    ]
    assert named({"extractor": inception, "samples": 500}, {"extractor": classifier, "samples": 500}) == [
        "extractor classifier",
        "extractor inception-fid-helper, kid 100x1000",
    ]
    # Hashes only if nothing else differs.
    assert named({"extractor": classifier, "samples": 500}, {"extractor": other, "samples": 1000}) == [
        "500 samples",
        "1,000 samples",
    ]
    assert named({"extractor": other}, {"extractor": classifier}) == [
        f"extractor {classifier}",
        f"extractor {other}",
    ]
    assert named({"clips": "8 frames", "samples": 9}, {"samples": 9}) == ["no clips", "clips 8 frames"]


def test_the_hash_of_a_protocol_is_in_the_details(made: Path) -> None:
    assert re.search(r"<summary>Protocol</summary>.*?<td>aaaa</td>", made.read_text(), re.DOTALL)


@pytest.mark.integration
def test_rows_that_settings_were_chosen_by_have_no_section() -> None:
    """They are against the training split, and the test split is reported."""
    train = {"split": "train", "protocol": "bbbb", "sample_seed": 9}
    rows = [each | {"kd_classifier": each["guidance"], "split": "test"} | more
            for each in [*arm("a", {4: 5.0}), *arm("a", {4: 6.0}, guidance=2.0)]
            for more in ({}, train | {"kd_classifier": 3 - each["guidance"]})]  # fmt: skip
    assert [(title, protocol) for title, _, protocol in split_sections(table(rows))] == [("made-up", "aaaa")]
    html = page_of(rows)
    [cells] = Tables(html).found["headline"]
    assert dict(zip(*cells, strict=True))["heldout_loss"].startswith("6.00")
    assert "8 steps, guidance 2 (chosen by kd_classifier against the training split with" in html


def test_the_page_says_why_something_is_missing(made: Path) -> None:
    text = made.read_text()
    assert "Dynamics: no dynamics.csv next to these rows" in text
    assert "Samples: no samples next to these rows" in text
    twice = [row("a", 4, 1.0), row("a", 4, 2.0, run="a/other")]
    assert "seed 0 stands for 2 runs of different configurations" in page_of(twice)


@pytest.mark.integration
def test_a_section_of_several_numbers_of_steps_compares_them() -> None:
    """Nothing chooses among them, so the section has no table of one setting."""
    rows = [
        {
            **each,
            "steps": steps,
            "macs_per_sample": steps * each["macs_per_sample"],
            "kd_classifier": 1 / steps,
        }
        for steps in (4, 8)
        for each in arm("e", {2: 3.0, 4: 2.0})
    ]
    html = page_of(rows)
    assert "e was measured at several values of steps; choose by other samples" in html
    assert "Loops or steps of made-up" in html and "Quality against inference compute of" not in html
    assert "Loops or steps: requires rows of several numbers" in page_of(arm("e", {2: 3.0, 4: 2.0}))


@pytest.mark.integration
def test_one_damaged_run_does_not_break_the_page(tmp_path: Path) -> None:
    rows = arm("e", {2: 3.0, 4: 2.0}, **tiled(tmp_path, "e", [2, 4, 8]))  # the tile of 8 loops has no row
    (tmp_path / "e" / "dynamics.csv").write_text("")
    (tmp_path / "e" / "validation.csv").write_text("")
    rows += [
        {**each, "name": "unmeasured", "run": "u/0", "heldout_loss": None} for each in arm("u", {4: 1.0})
    ]
    html = page_of(rows)
    assert "dynamics.csv: damaged" in html and "<li>unmeasured: no heldout_loss</li>" in html
    assert Tables(html).found["headline"] and "Samples of e at 4 loops" in html


def test_rows_at_other_loops_alone_still_have_points_and_figures() -> None:
    html = page_of(arm("e", {1: 3.0, 2: 2.0}))
    assert "Headline: no arm was measured at the loop count it was trained for" in html
    assert Tables(html).found["points"] and "Quality against inference compute of" in html
