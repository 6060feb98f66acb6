"""Which metric is the default, and which have ratios."""

import pandas as pd
import pytest
from support.made_up_rows import TWO_PROTOCOLS

from eltlab.analysis.metrics import choose_metric, describe_plus_minus, format_quality, why_no_ratio
from eltlab.common.errors import UserError


def test_the_default_is_the_held_out_loss_and_then_a_distance() -> None:
    every = pd.DataFrame({"kid": [1.0], "fd_classifier": [1.0], "fid": [1.0], "heldout_loss": [1.0]})
    assert choose_metric(every) == "heldout_loss"
    assert choose_metric(every.assign(heldout_loss=float("nan"))) == "fid"
    assert choose_metric(every.drop(columns=["fid", "heldout_loss"])) == "fd_classifier"
    for only in ("kd_classifier", "kid", "fd_classifier_inf", "fid_inf", "fvd", "fvd_inf"):
        assert choose_metric(pd.DataFrame({only: [1.0]})) == only


def test_a_requested_metric_must_be_in_the_rows() -> None:
    rows = TWO_PROTOCOLS.assign(fd_classifier=1.0)
    assert choose_metric(rows, "fd_classifier") == "fd_classifier"
    with pytest.raises(UserError, match="metric=kid: no such metric in the rows; they have heldout_loss"):
        choose_metric(rows, "kid")


def test_only_unbiased_metrics_have_ratios() -> None:
    for metric in ("heldout_loss", "kd_classifier", "kid"):
        assert why_no_ratio(pd.DataFrame({metric: [1.0]}), metric) is None
    rows = pd.DataFrame({"fd_classifier": [1.0], "samples": [500]})
    start = (
        "fd_classifier of 500 samples is biased by the number of samples, so it has no ratio, tax or power"
    )
    assert why_no_ratio(rows, "fd_classifier") == f"{start} law; measure the runs again with this version"
    reason = why_no_ratio(rows.assign(heldout_loss=1.0), "fd_classifier")
    assert reason == f"{start} law; choose metric=heldout_loss"
    for metric in ("fid", "fvd"):
        assert why_no_ratio(pd.DataFrame({metric: [1.0]}), metric)


def test_extrapolations_keep_a_bias_of_the_reference_so_they_have_differences_only() -> None:
    for metric in ("fd_classifier_inf", "fid_inf", "fvd_inf"):
        rows = pd.DataFrame({metric: [1.0], "kid": [1.0]})
        reason = (
            f"{metric} is biased by the size of the reference, so it has differences but no ratio; choose"
        )
        assert why_no_ratio(rows, metric) == f"{reason} metric=kid"


def test_a_value_has_its_interval_or_its_standard_error_or_says_that_it_has_none() -> None:
    nan = float("nan")
    assert format_quality(12.0, 1.0, 0.5) == "12.00 ± 1.00"
    assert format_quality(3.2173, 0.0042) == "3.2173 ± 0.0042"
    assert format_quality(0.1975, nan, 0.0011) == "0.1975 ± 0.0011 (se)"
    assert format_quality(12.0, nan) == "12.00 (no interval)"
    with_se = pd.DataFrame({"standard_error": [nan, 0.1]})
    assert "standard error" in describe_plus_minus(with_se)
    assert "standard error" not in describe_plus_minus(with_se.iloc[:1])


def two_losses(**more: object) -> pd.DataFrame:
    """Two arms whose losses are of different weights; the learning rate is not what makes them so."""
    keys = [("mse", 1e-3), ("mse", 2e-3), ("l1", 1e-3)]
    rows = [
        {"heldout_loss": 1.0, "heldout_protocol": loss, "cfg.objective.weight": loss, "cfg.optim.lr": rate}
        for loss, rate in keys
    ]
    return pd.DataFrame(rows).assign(**more)


def test_different_losses_are_no_default() -> None:
    rows = two_losses(fid=2.0)
    assert choose_metric(rows) == "fid" and choose_metric(rows.iloc[:2]) == "heldout_loss"
    message = (
        r"measure 2 different losses \(objective.weight\); choose metric=fid, or name the rows to compare"
    )
    with pytest.raises(UserError, match=f"metric=heldout_loss: the rows {message}"):
        choose_metric(rows, "heldout_loss")
    with pytest.raises(UserError, match=r"\(objective.weight\); measure samples with metrics.samples=N"):
        choose_metric(two_losses())


def test_losses_of_older_rows_are_a_group_of_their_own() -> None:
    rows = two_losses(fid=2.0).iloc[:2]
    assert choose_metric(rows.assign(heldout_protocol=None)) == "heldout_loss"
    mixed = rows.assign(heldout_protocol=[None, "aa"])
    with pytest.raises(UserError, match=r"2 different losses \(heldout_protocol unknown, aa\)"):
        choose_metric(mixed, "heldout_loss")
    # Rows without a loss have no protocol either, and do not count.
    assert choose_metric(mixed.assign(heldout_loss=[None, 1.0])) == "heldout_loss"
