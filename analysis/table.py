"""One table of all rows, for notebooks and other tools: OUT.parquet and OUT.csv.

    python analysis/table.py out=table.parquet [protocol=ID] ROWS [ROWS …]

ROWS are run folders or .jsonl files of rows. One line a measurement, every configuration key as
cfg.<key>; a cell that is a list is its JSON text. protocol= keeps the rows of one protocol.
"""

from pathlib import Path

import command

from eltlab import results


def main(paths: list[str], out: Path, protocol: str | None) -> None:
    table = results.load(*paths)
    if protocol is not None:
        table = table[table["protocol"] == protocol]
    parquet, sheet = results.write_table(table, out)
    print(f"{len(table)} rows: {parquet} {sheet}")


if __name__ == "__main__":
    command.run(main, str(__doc__))
