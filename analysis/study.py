"""The table of a study, as a sweep prints it: each arm at each loop count, mean over seeds.

    python -m eltlab.analysis.study [out=study.md] [protocol=ID] ROWS

ROWS is a study's folder or a .jsonl file of its rows. Prints the table; out= also writes it as Markdown (.md)
or CSV (.csv).
"""

from typing import Any

import pandas as pd

from eltlab.analysis import command
from eltlab.analysis.arm_table import arm_lines, arm_rows
from eltlab.analysis.chosen_settings import reported_rows
from eltlab.analysis.metrics import choose_metric
from eltlab.analysis.table_files import save_table
from eltlab.common.errors import UserError


def main(table: pd.DataFrame, keys: Any) -> None:
    rows = reported_rows(table, keys.protocol)
    studies = rows["study"].dropna().unique()
    if len(studies) != 1:
        found = ", ".join(studies) or "no study, but of single runs (use python -m eltlab.analysis.headline)"
        raise UserError(f"the rows are of {found}; give the rows of one study")
    metric = choose_metric(rows)
    print(*arm_lines(rows, studies[0], metric), sep="\n")
    if keys.out is not None:
        print(f"table: {save_table(arm_rows(rows, studies[0], metric), keys.out)}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out=None, protocol=None)
