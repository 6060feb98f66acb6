"""The table of a study, as a sweep prints it: each arm at each loop count, mean over seeds.

    python analysis/study.py ROWS

ROWS is a study's folder or a .jsonl file of its rows.
"""

import sys

from eltlab import results
from eltlab.errors import UserError
from eltlab.study import METRICS
from eltlab.summary import arms


def main(paths: list[str]) -> None:
    rows = results.comparable(results.load(*paths))
    studies = rows["study"].dropna().unique()
    if len(studies) != 1:
        raise UserError(f"{' '.join(paths)}: rows of {len(studies)} studies; give those of one")
    measured = [names[0] for names in METRICS.values() if rows[names[0]].notna().any()]
    if not measured:
        raise UserError(
            f"{' '.join(paths)}: no row has one of {', '.join(n[0] for n in METRICS.values())}"
        )
    print(*arms(rows, studies[0], measured[0]), sep="\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
