"""What each loop does: how far it moves the state at each sampling step, and each exit's loss over training.

    python -m eltlab.analysis.dynamics [out=dynamics.png] [arms=elastic,vanilla] [protocol=ID] [ROWS …]

Reads dynamics.csv and validation.csv from the folder of each run. Each arm is a column, at the loop count it
was trained for. Above: the relative update ‖h_ℓ − h_(ℓ−1)‖ / ‖h_(ℓ−1)‖ of each loop over the sampling steps
(Figure 14 of ELT, arXiv 2604.09168). Below: the held-out loss of each exit over training. All are means over
seeds. Of many arms four are drawn, which the caption says; arms= chooses others.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eltlab.analysis import command, style
from eltlab.analysis.chosen_settings import reported_rows
from eltlab.analysis.labels import End, column_height, label_ends, shorten
from eltlab.analysis.looks import ramp
from eltlab.analysis.points import arm_kinds, caption_of_sampling, name_arms
from eltlab.analysis.text_values import as_text, name_omitted
from eltlab.common.errors import UserError, suggest
from eltlab.runs.row_files import SETTINGS

ARMS = 4  # drawn by default


def select_runs(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """One row per comparable run, with the short name of its arm."""
    rows = name_arms(reported_rows(table, protocol))
    return rows[rows["loop_schedule"] == "constant"].drop_duplicates("run")


def read_run_files(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The CSV files of this name in the runs' folders as one table, with arm, seed and loops_train.

    Raises UserError if no run has one.
    """
    found = []
    for run in runs.itertuples():
        path = Path(run.folder) / name
        if path.is_file():
            try:
                lines = pd.read_csv(path)
            except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: damaged ({error}); restore or remove it") from error
            # Lines measured before the run continued belong to an earlier model.
            lines = lines[lines["images_seen"] == run.images_seen] if "images_seen" in lines else lines
            lines = at_setting(lines, run)
            facts = {"arm": run.arm, "seed": run.seed, "loops_train": run.loops_train}
            found.append(lines.assign(**facts))
    if not found:
        raise UserError(
            f"no {name} next to these rows; give the folders of the runs, or committed rows NAME.jsonl that "
            "have a folder analysis/data/NAME/"
        )
    return pd.concat(found, ignore_index=True)


def at_setting(lines: pd.DataFrame, run: Any) -> pd.DataFrame:
    """The lines measured at the settings of a row, in so far as the file names them."""
    for column in (name for name in SETTINGS if name in lines and hasattr(run, name)):
        [value] = as_text(pd.Series([getattr(run, column)], dtype=object))
        lines = lines[as_text(lines[column]) == value]
    return lines


def relative_updates(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The relative update of each loop at each sampling step, for constant loop counts, mean over seeds.

    Columns: arm, loops (of the pass), step, loop, update, loops_train. Only measurements under the rows'
    protocol.
    """
    runs = select_runs(table, protocol)
    lines = read_run_files(runs, "dynamics.csv")
    lines = lines[lines["protocol"] == runs["protocol"].iloc[0]]
    # The column is text if the file has schedules.
    lines = lines.assign(loops=pd.to_numeric(lines["loops"], errors="coerce")).dropna(subset=["loops"])
    keys = ["arm", "loops", "step", "loop"]
    return lines.groupby(keys, sort=False, as_index=False).agg(
        update=("update", "mean"), loops_train=("loops_train", "first")
    )


def exit_losses(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The held-out loss of each exit over training, mean over noise levels (or mask ratios) and seeds.

    Columns: arm, images, exit, loss.
    """
    lines = read_run_files(select_runs(table, protocol), "validation.csv")
    keys = ["arm", "images", "exit"]
    return lines.groupby(keys, sort=False, as_index=False).agg(loss=("loss", "mean"))


def draw(table: pd.DataFrame, arms: list[str] | None = None, protocol: str | None = None) -> Figure:
    """Two rows of panels with one column per arm; arms that do not loop are skipped."""
    moved, learned = relative_updates(table, protocol), exit_losses(table, protocol)
    runs = select_runs(table, protocol)
    looped = looped_arms(moved)
    chosen = choose_arms(looped, runs, arms)
    text = caption_of_sampling(table, protocol, "means over them and, below, over noise levels")
    text += name_omitted("Not drawn, unless given as arms=", (arm for arm in looped if arm not in chosen))
    text += name_omitted("Without loops or without dynamics.csv", set(runs["arm"]) - set(looped))
    colours = ramp(int(moved.loc[moved["arm"].isin(chosen), "loops_train"].max()))
    size = (style.panel_width(len(chosen), 3.6), max(2.8, column_height(len(colours))))
    with style.canvas(text, len(chosen), 2, size=size) as (figure, panels):
        ends: list[list[End]] = [[] for _ in panels]
        for column, arm in enumerate(chosen):
            above, below = column, len(chosen) + column
            here = moved[(moved["arm"] == arm) & (moved["loops"] == moved["loops_train"])]
            share_scale(panels[above], panels[0])
            ends[above] = draw_lines(panels[above], here, ("step", "update", "loop"), colours)
            panels[above].set_title(shorten(arm, int(12 * size[0])))
            share_scale(panels[below], panels[len(chosen)])
            here = learned[learned["arm"] == arm]
            ends[below] = draw_lines(panels[below], here, ("images", "loss", "exit"), colours)
        panels[0].set_ylabel("relative update")
        panels[len(chosen)].set_ylabel("held-out loss")
        for axes in panels[: len(chosen)]:
            axes.set_xlabel("sampling step")
        for axes in panels[len(chosen) :]:
            axes.set_xlabel("images seen")
        style.settle(figure)
        for axes, places in zip(panels, ends, strict=True):
            label_ends(axes, places)
    return figure


def looped_arms(moved: pd.DataFrame) -> list[str]:
    return [str(arm) for arm in moved.loc[moved["loops_train"] > 1, "arm"].unique()]


def choose_arms(looped: list[str], runs: pd.DataFrame, requested: list[str] | None) -> list[str]:
    """The requested arms, or ARMS of those that loop, in the order of the rows: of each kind the arm with the
    most loops, then the second of each."""
    for arm in requested or []:
        if arm not in looped:
            raise UserError(f"arms={arm}: {suggest(arm, looped, 'arms that loop')}")
    if not looped:
        raise UserError("no arm of these rows loops: there are no updates to compare")
    arms = runs.assign(kind=arm_kinds(runs)).drop_duplicates("arm")
    arms = arms[arms["arm"].isin(looped)].sort_values("loops_train", ascending=False, kind="stable")
    order = arms.groupby("kind", sort=False).cumcount().sort_values(kind="stable").index
    first = set(arms.loc[order[:ARMS], "arm"])
    return requested or [arm for arm in looped if arm in first]


def share_scale(axes: Axes, first: Axes) -> None:
    """Gives all panels of a row one log scale, so that arms can be compared."""
    axes.set_yscale("log")
    if axes is not first:
        axes.sharey(first)


def draw_lines(
    axes: Axes, found: pd.DataFrame, columns: tuple[str, str, str], colours: list[str]
) -> list[End]:
    """Draws one line per loop (or exit) in its colour; returns where each ends, with its name."""
    x, y, which = columns
    ends: list[End] = []
    for number, group in found.groupby(which):
        line: dict[str, Any] = {"color": colours[int(str(number)) - 1]}
        group = group.sort_values(x)
        axes.plot(group[x], group[y], **line)
        ends.append(End(group[y].iloc[-1], f"{which} {number}", line))
    return ends


def main(table: pd.DataFrame, keys: Any) -> None:
    arms = keys.arms.split(",") if keys.arms else None
    print(f"figure: {style.save(draw(table, arms, keys.protocol), keys.out)[0]}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="dynamics.png", arms=None, protocol=None)
