"""One table of all rows, for notebooks and other tools: OUT.parquet and OUT.csv.

    python -m eltlab.analysis.table [out=table.parquet] [protocol=ID] [ROWS …]

ROWS are run folders or .jsonl files of rows. There is one line per measurement, with every configuration key
as cfg.<key>; lists are written as JSON. protocol= keeps the rows of one protocol.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from eltlab.analysis import command
from eltlab.runs import result_table


def main(table: pd.DataFrame, keys: Any) -> None:
    if keys.protocol is not None:
        table = table[table["protocol"] == keys.protocol]
    parquet, sheet = result_table.write_table(table, Path(keys.out))
    print(f"{len(table)} rows: {parquet} {sheet}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="table.parquet", protocol=None)
