"""python -m eltlab.report [runs_dir=DIR] [out=report.html]: tables, figures and samples on one page.

One section per study and protocol: the headline table, samples of the same noise and labels at each loop
count next to the unique-layer twin, and the figures of analysis/, each of which is also a command:
  python -m eltlab.analysis.{pareto,anytime,ablation,dynamics,scaling} --help
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from eltlab.cli import own_keys
from eltlab.common.command import run_command
from eltlab.common.errors import UserError, suggest
from eltlab.common.files import write_atomic
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key


@dataclass
class Keys:
    runs_dir: str | None = key(
        None,
        "a folder of runs or of a study, or a .jsonl file of rows; committed: the rows that come with "
        "eltlab; null: runs, or committed if runs has no rows",
    )
    out: str = key("report.html", "one file that needs no other")


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()))


def main(arguments: list[str]) -> None:
    keys, others = own_keys(arguments, Keys())
    if others:
        name = others[0].partition("=")[0]
        raise UserError(f"{others[0]}: {suggest(name, ['runs_dir', 'out'], 'keys')}")
    out = Path(keys.out).expanduser()
    if out.suffix != ".html":
        raise UserError(f"out={keys.out}: the page is an .html file")
    from eltlab.analysis.command import read_report_rows
    from eltlab.analysis.page import render_page

    table, source = read_report_rows(keys.runs_dir)
    html = render_page(table, source, lambda title: print(f"report: {title}", file=sys.stderr))
    write_atomic(out, html)
    print(f"report: {out}")


if __name__ == "__main__":
    run_command(main, usage, stopped="no page was written")
