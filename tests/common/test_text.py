"""Numbers, sizes, times, tables and URLs as text."""

import pytest

from eltlab.common.text import format_bytes, format_duration, format_si, format_table, mask_password


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12, "12"), (999, "999"), (1000, "1k"), (122880, "122.9k"), (999960, "1M")],
)
def test_format_si(value, text):
    assert format_si(value) == text


def test_units_follow_a_space():
    assert format_si(29.9e9, "FLOP/s") == "29.9 GFLOP/s" and format_si(5, "FLOP/s") == "5 FLOP/s"


@pytest.mark.parametrize(
    ("size_in_bytes", "text"),
    [(512 * 1024, "512 KiB"), (3 * 2**20, "3 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**41, "2,048 GiB")],
)
def test_format_bytes(size_in_bytes, text):
    assert format_bytes(size_in_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00421, "4.21 ms"), (58, "58 s"), (750, "12.5 min"), (11520, "3.2 h"), (1468800, "17 days")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_columns_are_aligned():
    assert format_table([["a", "10"], ["bcd", "2"]]) == ["a    10", "bcd   2"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h:1/db", "postgresql://u:***@h:1/db"),
        ("postgresql://u:p@q:r/s@h:1/db", "postgresql://u:***@h:1/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        (
            "postgresql:///db?user=u&password=p&host=h",
            "postgresql:///db?user=u&password=***&host=h",
        ),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("mysql+x://u:p\nq@h", "mysql+x://u:***@h"),
    ],
)
def test_mask_password(url, expected):
    assert mask_password(url) == expected
