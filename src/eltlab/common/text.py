"""Formats numbers, tables, names and addresses for people."""

import re
from collections.abc import Sequence
from pathlib import Path

PREFIXES = " kMGTPEZYRQ"


def format_si(value: float, unit: str = "") -> str:
    """Four digits and an SI prefix: 122.9k, 7.308M; with a unit, 29.9 GFLOP/s."""
    power = 0
    while abs(value) >= 999.95 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    prefix = PREFIXES[power].strip() + unit
    return f"{value:.4g} {prefix}" if unit else f"{value:.4g}{prefix}"


def format_bytes(size: float) -> str:
    """Bytes in powers of 1024: 512 KiB, 1.23 GiB."""
    for unit, length in (("KiB", 2**10), ("MiB", 2**20)):
        if size < 999.5 * length:
            return f"{size / length:.3g} {unit}"
    return f"{size / 2**30:.3g} GiB" if size < 999.5 * 2**30 else f"{size / 2**30:,.0f} GiB"


def format_duration(seconds: float) -> str:
    """Three digits in a suitable unit: 4.21 ms, 58 s, 12.5 min, 3.2 h, 17 days."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for unit, length, most in (("s", 1, 100), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.3g} days" if seconds < 864e5 else f"{seconds / 86400:,.0f} days"


def format_clock(seconds: float) -> str:
    """As a clock shows it: 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def example_unit(shape: Sequence[int]) -> str:
    """What to call examples of a shape: images [C, H, W], clips [F, C, H, W]."""
    return "images" if len(shape) == 3 else "clips"


def format_loops(loops: int | str | list[int]) -> str:
    """1 loop, 4 loops; of a schedule: loops 4to1."""
    if not isinstance(loops, int):
        return f"loops {loops}"
    return f"{loops} loop" if loops == 1 else f"{loops} loops"


def printable_name(name: str | Path) -> str:
    """The name, quoted and escaped if it has characters that cannot be printed on one line."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def one_line(text: str) -> str:
    """The text, with characters that cannot be printed on one line escaped as in Python."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def mask_password(url: str) -> str:
    """The URL with its password replaced by ***, even if it is not well formed."""
    # Up to the last @, because the password may contain an unescaped @.
    start = "://[^:/@]*:" if "://" in url else "^[^:]*:"
    masked = re.sub(f"({start}).*@", r"\1***@", url, count=1, flags=re.DOTALL)
    return re.sub(r"(?i)(password\s*=\s*)[^&\s]+", r"\1***", masked)


def format_table(rows: list[list[str]]) -> list[str]:
    """The lines of a table: the first column aligned left, the rest right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
