"""How quality falls with inference compute, and what a loop is worth in unique layers.

    python -m eltlab.analysis.scaling [out=scaling.png] [metric=fid] [protocol=ID] [ROWS …]

Makes two fits by least squares in logarithms, with 95 % intervals:

    quality = a·G^b + c         G: MACs per sample; for each kind of arm
    quality = a·(N·r^φ)^b + c   N: unique layers, r: loops; for unique-layer and looped arms together

If a loop is worth as much as a layer, φ = 1; if it is worth nothing, φ = 0 (arXiv 2604.21106 reports 0.46 for
language). Arms are taken at the loop counts they were trained for. The quality is an unbiased quantity.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import optimize, stats

from eltlab.analysis import command, style
from eltlab.analysis.chosen_settings import arm_settings, choose_settings, reported_rows, why_unmatched
from eltlab.analysis.labels import End, column_height, label_ends
from eltlab.analysis.looks import Look, arm_looks
from eltlab.analysis.metrics import choose_metric, why_no_ratio
from eltlab.analysis.paired import why_no_logarithm
from eltlab.analysis.points import (
    COSTS,
    UNIQUE,
    at_trained_loops,
    caption,
    has_constant_loops,
    name_arms,
    nearly_equal,
    seed_points,
)
from eltlab.analysis.text_values import name_omitted
from eltlab.common.errors import UserError

COST = "macs_per_sample"
LABELS = 30  # at most
MAX_HALF_INTERVAL = 5.0  # of an exponent; a wider interval means that the points do not determine it

Model = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Fit(NamedTuple):
    """Fitted parameters with their 95 % intervals, and the number of points."""

    names: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    points: int

    def __str__(self) -> str:
        parts = zip(self.names, self.values, self.low, self.high, strict=True)
        return ", ".join(
            f"{n} = {v:.4g}" + (f" ({a:.4g} to {b:.4g})" if a < b else "") for n, v, a, b in parts
        )


def fit_power_law(compute: Any, quality: Any) -> Fit:
    """Fits a, b and c ≥ 0 of quality = a·(G/G₀)^b + c. Raises UserError if the points do not determine b.

    compute, quality: [n], above 0. G₀, the last of the four names, is the geometric mean of the compute;
    with it, a and b are nearly uncorrelated.
    """
    x, y = to_positive(compute, quality)
    check_enough(x, y, 3, "a, b and c")
    centre = float(np.exp(np.log(x).mean()))

    def law(params: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.exp(params[0]) * (x / centre) ** params[1] + params[2] ** 2

    fit = fit_law(law, x, y, initial_guess(x / centre, y), "a b c")
    return fit._replace(
        names=(*fit.names, "G₀"),
        values=np.append(fit.values, centre),
        low=np.append(fit.low, centre),
        high=np.append(fit.high, centre),
    )


def fit_loop_worth(layers: Any, loops: Any, quality: Any) -> Fit:
    """Fits a, b, c and φ of quality = a·(N·r^φ)^b + c.

    layers, loops, quality: [n], N, r and the distance of each point. Raises UserError if the points do not
    determine φ, or if there are no looped arms or fewer than two depths of unique layers.
    """
    n, y = to_positive(layers, quality)
    r = np.asarray(loops, dtype=float)
    if not ((r == 1).any() and (r > 1).any() and len(np.unique(n[r == 1])) > 1):
        raise UserError(
            "the worth of a loop requires looped arms, and unique-layer arms of two depths or more; "
            "the study anytime has both"
        )
    check_enough(np.stack([n, r], axis=1), y, 4, "a, b, c and φ")

    def law(params: np.ndarray, x: np.ndarray) -> np.ndarray:
        worth = x[0] * x[1] ** params[3]
        return np.exp(params[0]) * worth ** params[1] + params[2] ** 2

    start = [*initial_guess(n[r == 1], y[r == 1]), 0.5]
    return fit_law(law, np.stack([n, r]), y, start, "a b c φ")


def check_enough(x: np.ndarray, y: np.ndarray, parameters: int, names: str) -> None:
    """Raises UserError if there are too few points for a fit with intervals.

    Seeds of one model count as one place, and so do models whose costs are within 5 %.
    """
    apart = len(np.unique(np.round(np.log(x) / 0.05), axis=0))
    if apart < parameters or len(y) <= parameters:
        raise UserError(
            f"{len(y)} points at {apart} different places; fitting {names} with intervals takes "
            f"{parameters + 1} points at {parameters} places"
        )


def to_positive(*columns: Any) -> list[np.ndarray]:
    arrays = [np.asarray(column, dtype=float) for column in columns]
    if any((array <= 0).any() for array in arrays):
        raise UserError("a power law requires values above 0")
    return arrays


def initial_guess(x: np.ndarray, y: np.ndarray) -> list[float]:
    """The start of a fit: log a and b of a straight line in logarithms, and √c for a small floor c."""
    found = stats.linregress(np.log(x), np.log(y))
    return [found.intercept, found.slope, float(np.sqrt(0.1 * y.min()))]


def fit_law(law: Model, x: np.ndarray, y: np.ndarray, start: list[float], names: str) -> Fit:
    """Fits by least squares in log quality, with log a and √c as parameters, so that a > 0 and c ≥ 0.

    Intervals are t intervals from the covariance; for c, which may be at its bound 0, from its profile.
    """
    freedom = len(y) - len(start)

    def residual(params: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(law(params, x), 1e-300)) - np.log(y)

    best = min(
        (
            optimize.least_squares(residual, [*start[:2], root, *start[3:]], x_scale="jac")
            for root in (start[2], 3 * start[2], 1e-3)
        ),
        key=lambda result: result.cost,
    )
    # At c = 0 the slope in √c is 0. The pseudo-inverse then treats c as fixed.
    spread = np.linalg.pinv(best.jac.T @ best.jac) * 2 * best.cost / freedom
    reach = stats.t.ppf(0.975, freedom)
    half = reach * np.sqrt(np.maximum(np.diag(spread), 0.0))
    low, high, values = best.x - half, best.x + half, best.x.copy()
    for index in (1, *range(3, len(start))):
        if not half[index] < MAX_HALF_INTERVAL:
            raise UserError(
                f"the points do not determine {names.split()[index]}: its interval is {low[index]:.3g} to "
                f"{high[index]:.3g}"
            )
    for array in (low, high, values):
        array[0] = np.exp(array[0])
    values[2] = best.x[2] ** 2
    worst = 2 * best.cost * (1 + reach**2 / freedom)
    low[2], high[2] = profile_interval(residual, best.x, worst, y)
    return Fit(tuple(names.split()), values, low, high, len(y))


def profile_interval(residual: Any, best: np.ndarray, worst: float, y: np.ndarray) -> tuple[float, float]:
    """The range of c in which refitting the other parameters gives a sum of squares of at most worst.

    It is searched from 0 to ten times the greatest distance.
    """
    others = [index for index in range(len(best)) if index != 2]

    def excess(c: float) -> float:
        def residual_at_c(params: np.ndarray) -> np.ndarray:
            whole = np.empty(len(best))
            whole[others], whole[2] = params, np.sqrt(c)
            return residual(whole)

        return 2 * optimize.least_squares(residual_at_c, best[others], x_scale="jac").cost - worst

    def edge(inside: float, outside: float) -> float:
        if excess(inside) >= 0:
            return inside
        if excess(outside) <= 0:
            return outside
        return float(optimize.brentq(excess, *sorted((inside, outside)), rtol=1e-4))

    here = best[2] ** 2
    return edge(here, 0.0), edge(here, 10 * float(y.max()))


# --- of a table -----------------------------------------------------------------------------------


def power_laws(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> dict[str, Fit | str]:
    """The power law of each kind of arm over its runs, or the reason why there is none.

    Unique-layer and vanilla arms are taken at their trained loop count, elastic arms at every count up to it.
    """
    lines = seed_points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    why = reasons_without_fit(table, metric, protocol)
    return {
        str(kind): why(group) or try_fit(fit_power_law, group["macs_per_sample"], group[metric])
        for kind, group in intended_points(lines).groupby("kind", sort=False)
    }


def reasons_without_fit(
    table: pd.DataFrame, metric: str, protocol: str | None
) -> Callable[[pd.DataFrame], str | None]:
    """A function that says why points (lines of `seed_points`) have no fit, or None if they have.

    The metric is biased, arms are not above 0 by their error, or they were measured at different settings.
    """
    rows, choices = choose_settings(table, protocol)
    biased = why_no_ratio(rows, metric)
    settings = arm_settings(name_arms(rows), choices, metric)

    def why(lines: pd.DataFrame) -> str | None:
        if biased is not None:
            return biased
        reasons = "; ".join(why_no_logarithm(lines, metric))
        return reasons or why_unmatched(settings, lines["arm"].unique())

    return why


def intended_points(lines: pd.DataFrame) -> pd.DataFrame:
    """The points an arm is trained for: for elastic arms, every loop count up to the trained one."""
    elastic = lines["kind"].str.startswith("elastic")
    inside = elastic & has_constant_loops(lines) & (lines["loops"] <= lines["loops_train"])
    return lines[inside | lines.index.isin(at_trained_loops(lines).index)]


def loop_worths(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> dict[str, Fit | str]:
    """φ of each kind of looped arm, fitted with the unique-layer arms, or the reason why there is none.

    Each width has its own φ. Raises UserError if the rows have several widths.
    """
    lines = seed_points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    why = reasons_without_fit(table, metric, protocol)
    if lines["width"].nunique() > 1:
        widths = ", ".join(f"{width:g}" for width in sorted(lines["width"].unique()))
        raise UserError(f"rows of widths {widths}: give rows of one width to fit the worth of a loop")
    own = at_trained_loops(lines)
    unique = own["kind"] == UNIQUE
    found: dict[str, Fit | str] = {}
    for kind in own.loc[~unique, "kind"].unique():
        group = own[unique | (own["kind"] == kind)]
        columns = (group["unique_layers"], group["loops_train"], group[metric])
        found[str(kind)] = why(group) or try_fit(fit_loop_worth, *columns)
    return found


def try_fit(fit: Callable[..., Fit], *columns: pd.Series) -> Fit | str:
    try:
        return fit(*columns)
    except UserError as error:
        return str(error)


# --- the figure -----------------------------------------------------------------------------------


def draw(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> Figure:
    """Every run over its MACs per sample, with the power law of each kind that has one."""
    lines = seed_points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    fits, looks = power_laws(table, metric, protocol), arm_looks(table, protocol)
    shown = intended_points(lines)
    best = shown.groupby("arm")[metric].mean().sort_values().index
    named = best[:LABELS]
    text = figure_caption(table, metric, protocol)
    text += name_omitted("Not at the loop counts it was trained for", set(looks.arms) - set(best))
    text += name_omitted("Without a name", best[LABELS:])
    with style.canvas(text, size=(6.8, max(4.4, 0.4 + column_height(len(named))))) as (figure, [axes]):
        style.set_log_axes(axes, COSTS[COST], f"{metric} (lower is better)")
        style.make_room_below_0(axes, lines[metric])
        for look, group in shown.groupby(shown["arm"].map(looks.arms), sort=False):
            many = len(group) > style.MANY
            axes.plot(group[COST], group[metric], **look.line(linestyle="None", alpha=0.6, rasterized=many))
        for kind, group in shown.groupby("kind", sort=False):
            draw_fit(axes, str(kind), fits[str(kind)], group[COST], looks.kinds[str(kind)])
        handles, names = axes.get_legend_handles_labels()
        columns = style.legend_columns(names, figure.get_figwidth())
        figure.legend(handles, names, loc="outside upper left", ncols=columns)
        style.settle(figure)
        label_ends(axes, [end_of(shown[shown["arm"] == arm], metric, looks.arms[arm]) for arm in named])
    return figure


def end_of(lines: pd.DataFrame, metric: str, look: Look) -> End:
    """The name of an arm, at the mean of its seeds at the greatest cost."""
    last = lines[nearly_equal(lines[COST], lines[COST].max())]
    return End(last[metric].mean(), last["arm"].iloc[0], look.line(linestyle="None"))


def draw_fit(axes: Axes, kind: str, fit: Fit | str, compute: pd.Series, colour: str) -> None:
    if isinstance(fit, str):
        axes.plot([], [], color=colour, label=f"{kind}: no fit")
        return
    x = np.geomspace(compute.min(), compute.max(), 100)
    a, b, c, centre = fit.values
    name = f"{kind}: b = {b:.2f} ({fit.low[1]:.2f} to {fit.high[1]:.2f}), c = {c:.3g}"
    axes.plot(x, a * (x / centre) ** b + c, color=colour, label=name)


def figure_caption(table: pd.DataFrame, metric: str, protocol: str | None) -> str:
    reason = why_no_ratio(reported_rows(table, protocol), metric)
    fits = "Fits of a·(G/G₀)^b + c over runs" if reason is None else f"No fits: {reason}"
    return f"{caption(table, metric, protocol, 'one mark per run')}. {fits}"


def main(table: pd.DataFrame, keys: Any) -> None:
    rows = reported_rows(table, keys.protocol)
    reason = why_no_ratio(rows, choose_metric(rows, keys.metric))
    if reason is None:
        print_fits(table, keys)
    else:
        print(f"no fits: {reason}")
    print(f"figure: {style.save(draw(table, keys.metric, keys.protocol), keys.out)[0]}")


def print_fits(table: pd.DataFrame, keys: Any) -> None:
    print("quality = a·(G/G₀)^b + c over MACs per sample")
    for kind, fit in power_laws(table, keys.metric, keys.protocol).items():
        print(f"  {kind}: {fit}")
    print("quality = a·(N·r^φ)^b + c over unique layers and loops")
    try:
        for kind, fit in loop_worths(table, keys.metric, keys.protocol).items():
            print(f"  {kind}: {fit}")
    except UserError as error:
        print(f"  {error}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="scaling.png", metric=None, protocol=None)
