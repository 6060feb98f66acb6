"""The table of a study, as a sweep prints it: each arm at each loop count, mean over seeds.

    python -m eltlab.analysis.study [protocol=ID] ROWS

ROWS is a study's folder or a .jsonl file of its rows.
"""

from typing import Any

import pandas as pd

from eltlab.analysis import command
from eltlab.analysis.points import choose_metric
from eltlab.common.errors import UserError
from eltlab.runs import comparable_rows
from eltlab.runs.arm_table import arm_lines


def main(table: pd.DataFrame, keys: Any) -> None:
    rows = comparable_rows.comparable(table, keys.protocol)
    studies = rows["study"].dropna().unique()
    if len(studies) != 1:
        found = (
            ", ".join(studies)
            or "no study: they are of single runs (python -m eltlab.analysis.headline)"
        )
        raise UserError(f"the rows are of {found}; give those of one study")
    print(*arm_lines(rows, studies[0], choose_metric(rows)), sep="\n")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), protocol=None)
