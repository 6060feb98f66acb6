"""One table of all rows, for notebooks and other tools: OUT.parquet and OUT.csv.

    python analysis/table.py out=table.parquet [protocol=ID] ROWS [ROWS …]

ROWS are run folders or .jsonl files of rows. One line a measurement, every configuration key as
cfg.<key>; a cell that is a list is its JSON text. protocol= keeps the rows of one protocol.
"""

import json
from pathlib import Path
from typing import Any

import command
import pandas as pd

from eltlab import results
from eltlab.files import renamed


def plain(column: pd.Series) -> pd.Series:
    """A column of one type: text where values of several types or lists meet."""
    present = column.dropna()
    if column.dtype != object or present.map(type).isin([str]).all():
        return column
    if present.map(type).isin([bool]).all():
        return column.astype("boolean")
    return column.map(text, na_action="ignore")


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(paths: list[str], out: Path, protocol: str | None) -> None:
    table = results.load(*paths)
    if protocol is not None:
        table = table[table["protocol"] == protocol]
    table = table.apply(plain).reset_index(drop=True)
    parquet, sheet = out.with_suffix(".parquet"), out.with_suffix(".csv")
    with renamed(parquet) as temporary:
        table.to_parquet(temporary)
    with renamed(sheet) as temporary:
        table.to_csv(temporary, index=False)
    print(f"{len(table)} rows: {parquet} {sheet}")


if __name__ == "__main__":
    command.run(main, str(__doc__))
