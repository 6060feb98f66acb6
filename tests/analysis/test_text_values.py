"""Values of any types can be compared as text."""

import numpy as np
import pandas as pd

from eltlab.analysis.text_values import as_text


def test_mixed_and_missing_values_become_text() -> None:
    column = pd.Series([1, 1.0, 1e-3, "linear", None, np.nan, True, [1, 2]], dtype=object)
    assert list(as_text(column)) == ["1", "1", "0.001", "linear", "unset", "unset", "True", "[1, 2]"]
    assert sorted(as_text(pd.Series(["a", None, np.nan]))) == ["a", "unset", "unset"]


def test_whole_numbers_are_written_alike_if_others_are_missing() -> None:
    assert list(as_text(pd.Series([4, None]))) == ["4", "unset"]
