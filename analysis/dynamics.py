"""What loops do: how much each moves the state at every sampling step, and the exits' losses as they learn.

    python -m eltlab.analysis.dynamics [out=dynamics.png] [arms=elastic,vanilla] [protocol=ID] [ROWS …]

Reads dynamics.csv and validation.csv of each run, beside its rows. A column an arm, at the loop count that
it was trained for: above, the relative update ‖h_ℓ − h_(ℓ−1)‖ / ‖h_(ℓ−1)‖ of each loop over the sampling
steps (Figure 14 of ELT, arXiv 2604.09168); below, the held-out loss of each exit over training. Means over
seeds.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eltlab.analysis import command, style
from eltlab.analysis.points import caption, name_arms
from eltlab.common.errors import UserError, suggest
from eltlab.runs import comparable_rows

ARMS = 4  # at most, where nobody says which


def select_runs(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """One row a run that can be compared, with the short name of its arm."""
    rows = name_arms(comparable_rows.comparable(table, protocol))
    return rows[rows["loop_schedule"] == "constant"].drop_duplicates("run")


def read_beside(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The files of this name in the runs' folders as one table, with arm, seed and loops_train.

    Raises UserError where no run has one.
    """
    found = []
    for run in runs.itertuples():
        path = Path(run.folder) / name
        if path.is_file():
            try:
                lines = pd.read_csv(path)
            except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: not as training left it ({error})") from error
            # What was measured before the run went on is another model's.
            lines = (
                lines[lines["images_seen"] == run.images_seen] if "images_seen" in lines else lines
            )
            facts = {"arm": run.arm, "seed": run.seed, "loops_train": run.loops_train}
            found.append(lines.assign(**facts))
    if not found:
        raise UserError(
            f"no {name} beside these rows; give the folders of the runs (committed rows have it where "
            "analysis/data/NAME/ is there)"
        )
    return pd.concat(found, ignore_index=True)


def relative_updates(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The relative update of each loop at each sampling step, at constant loop counts, mean over seeds.

    Columns: arm, loops (of the pass), step, loop, update. Only measurements of the rows' protocol.
    """
    runs = select_runs(table, protocol)
    lines = read_beside(runs, "dynamics.csv")
    lines = lines[lines["protocol"] == runs["protocol"].iloc[0]]
    # A column with schedules in it is text.
    lines = lines.assign(loops=pd.to_numeric(lines["loops"], errors="coerce")).dropna(
        subset=["loops"]
    )
    keys = ["arm", "loops", "step", "loop"]
    return lines.groupby(keys, sort=False, as_index=False).agg(
        update=("update", "mean"), loops_train=("loops_train", "first")
    )


def exit_losses(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The held-out loss of each exit over training, mean over noise levels (or mask ratios) and seeds.

    Columns: arm, images, exit, loss.
    """
    lines = read_beside(select_runs(table, protocol), "validation.csv")
    keys = ["arm", "images", "exit"]
    return lines.groupby(keys, sort=False, as_index=False).agg(loss=("loss", "mean"))


def draw(table: pd.DataFrame, arms: list[str] | None = None, protocol: str | None = None) -> Figure:
    """Two rows of panels, a column an arm; arms that do not loop are left out."""
    moved, learned = relative_updates(table, protocol), exit_losses(table, protocol)
    chosen = choose_arms(moved, arms)
    with style.canvas(
        caption(table, protocol=protocol, shown="means over them and, below, over noise levels"),
        *(len(chosen), 2),
        size=(3.6, 2.8),
    ) as (figure, panels):
        ends: list[list[style.Place]] = [[] for _ in panels]
        for column, arm in enumerate(chosen):
            above, below = column, len(chosen) + column
            here = moved[(moved["arm"] == arm) & (moved["loops"] == moved["loops_train"])]
            share_scale(panels[above], panels[0])
            ends[above] = draw_lines(panels[above], here, ("step", "update", "loop"))
            panels[above].set_title(arm)
            share_scale(panels[below], panels[len(chosen)])
            here = learned[learned["arm"] == arm]
            ends[below] = draw_lines(panels[below], here, ("images", "loss", "exit"))
        for axes, places in zip(
            panels, ends, strict=True
        ):  # when the scale that all share is known
            style.label_ends(axes, places)
        panels[0].set_ylabel("relative update")
        panels[len(chosen)].set_ylabel("held-out loss")
        for axes in panels[: len(chosen)]:
            axes.set_xlabel("sampling step")
        for axes in panels[len(chosen) :]:
            axes.set_xlabel("images seen")
    return figure


def choose_arms(moved: pd.DataFrame, asked: list[str] | None) -> list[str]:
    looped = [str(arm) for arm in moved.loc[moved["loops_train"] > 1, "arm"].unique()]
    for arm in asked or []:
        if arm not in looped:
            raise UserError(f"arms={arm}: {suggest(arm, looped, 'arms that loop')}")
    if not looped:
        raise UserError("no arm of these rows loops: there are no updates to compare")
    return asked or looped[:ARMS]


def share_scale(axes: Axes, first: Axes) -> None:
    """Arms are compared: one scale for all."""
    axes.set_yscale("log")
    if axes is not first:
        axes.sharey(first)


def draw_lines(axes: Axes, found: pd.DataFrame, columns: tuple[str, str, str]) -> list[style.Place]:
    """A line a loop (or exit); where each ends, and its name."""
    x, y, which = columns
    last = len(style.SEQUENCE) - 1
    ends: list[style.Place] = []
    for number, group in found.groupby(which):
        colour = style.SEQUENCE[min(int(str(number)) - 1, last)]
        group = group.sort_values(x)
        axes.plot(group[x], group[y], color=colour)
        ends.append((*group.iloc[-1][[x, y]], f"{which} {number}", colour))
    return ends


def main(table: pd.DataFrame, keys: Any) -> None:
    arms = keys.arms.split(",") if keys.arms else None
    print(f"figure: {style.save(draw(table, arms, keys.protocol), keys.out)[0]}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="dynamics.png", arms=None, protocol=None)
