"""The metrics that arms are compared by: the default, and those that have ratios.

A Fréchet distance of n samples is biased upwards by an amount that depends on n and on the arm, so its
ratio says little about the ratio of the true distances (Chong and Forsyth, arXiv 1911.07023). At infinitely
many samples an amount remains that depends on the reference's size. It is the same for all arms, so their
differences are unbiased, but not their ratios. Ratios, elasticity taxes and power laws are therefore made of
the held-out loss and of kernel distances only.
"""

import math
from typing import TYPE_CHECKING

from eltlab.common.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

HELD_OUT = "heldout_loss"
KERNEL = ("kd_classifier", "kid")
INFINITE = ("fd_classifier_inf", "fid_inf", "fvd_inf")  # Fréchet distances at infinitely many samples
SAMPLED = (*KERNEL, *INFINITE)  # distances of samples whose differences are unbiased
UNBIASED = (HELD_OUT, *KERNEL)  # those that have ratios
FRECHET = ("fid", "fvd", "fd_classifier")
QUALITY = (HELD_OUT, *FRECHET, *SAMPLED)  # lower is better; the default is the first that the rows have


def measured(table: "DataFrame", metrics: tuple[str, ...] = QUALITY) -> list[str]:
    """Those of the metrics that the rows have, in order."""
    return [name for name in metrics if name in table and table[name].notna().any()]


def choose_metric(table: "DataFrame", requested: str | None = None) -> str:
    """The requested metric, or the first of QUALITY that the rows have.

    Raises UserError if there is none, or if the rows measure different losses and none but the held-out loss
    is requested or known.
    """
    known = measured(table)
    mixed = why_no_loss(table) if HELD_OUT in known and requested in (None, HELD_OUT) else None
    others = [name for name in known if name != HELD_OUT]
    if mixed is not None and (requested == HELD_OUT or not others):
        fix = f"choose metric={others[0]}" if others else "measure samples with metrics.samples=N"
        raise UserError(f"metric={HELD_OUT}: {mixed}; {fix}, or name the rows to compare")
    if requested is not None and requested not in known:
        raise UserError(
            f"metric={requested}: no such metric in the rows; they have {', '.join(known) or 'none'}"
        )
    if not known:
        raise UserError(
            f"the rows have none of {', '.join(QUALITY)}: evaluate the runs first with python -m "
            "eltlab.evaluate run=DIR"
        )
    return requested or (known if mixed is None else others)[0]


def why_no_loss(table: "DataFrame") -> str | None:
    """One line that says why held-out losses of the rows cannot be compared; None if they can.

    Only those of one `heldout_protocol` can. Rows without one are of an older version and count as a group.
    """
    rows = table[table[HELD_OUT].notna()]
    if "heldout_protocol" not in rows:
        return None
    losses = rows["heldout_protocol"].astype(object).fillna("unknown")
    if losses.nunique() < 2:
        return None
    places = ("cfg.objective.", "cfg.data.", "cfg.trainer.precision")
    found = {key: rows[key].map(str) for key in rows if key.startswith(places)}
    keys = [
        key.removeprefix("cfg.")
        for key, values in found.items()
        if values.nunique() > 1 and values.groupby(losses).nunique().max() == 1
    ]
    differ = ", ".join(keys) or f"heldout_protocol {', '.join(losses.unique())}"
    return f"the rows measure {losses.nunique()} different losses ({differ})"


def why_no_ratio(table: "DataFrame", metric: str) -> str | None:
    """One line that says why a metric has no ratio, tax or power law; None if it has them."""
    if metric in UNBIASED:
        return None
    others = measured(table, UNBIASED)
    fix = f"choose metric={others[0]}" if others else "measure the runs again with this version"
    if metric in INFINITE:
        return f"{metric} is biased by the size of the reference, so it has differences but no ratio; {fix}"
    samples = table.loc[table[metric].notna(), "samples"].unique() if "samples" in table else []
    of = f" of {samples[0]:g} samples" if len(samples) == 1 else ""
    return f"{metric}{of} is biased by the number of samples, so it has no ratio, tax or power law; {fix}"


def format_quality(mean: float, half: float, error: float = float("nan")) -> str:
    """The mean with half its interval over seeds, or else with its standard error (se).

    Small values, such as those of kid, and small intervals have more digits.
    """
    spread = half if math.isfinite(half) else error
    digits = 4 if abs(mean) < 1 or spread < 0.1 else 2
    if math.isfinite(half):
        return f"{mean:,.{digits}f} ± {half:,.{digits}f}"
    rest = f"± {error:,.{digits}f} (se)" if math.isfinite(error) else "(no interval)"
    return f"{mean:,.{digits}f} {rest}"


def describe_plus_minus(lines: "DataFrame") -> str:
    """What ± means in a table of these points."""
    text = "± is half the 95 % t interval over seeds"
    if lines["standard_error"].notna().any():
        text += (
            "; with (se), for one seed, the standard error of the measurement, which is not one over seeds"
        )
    return text
