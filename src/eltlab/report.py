"""python -m eltlab.report [runs_dir=DIR] [out=report.html]: tables, figures and samples on one page."""

import sys
from dataclasses import dataclass
from pathlib import Path

from eltlab.cli import own_keys
from eltlab.common.atomic_files import write_atomic
from eltlab.common.command import run_command
from eltlab.common.errors import UserError, suggest


@dataclass
class Asked:
    runs_dir: str | None = None
    out: str = "report.html"


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "  runs_dir=runs       a folder of runs, of a study, or a .jsonl file of rows; committed: the rows\n"
        "                      that come with eltlab, which are also taken where runs/ has none\n"
        "  out=report.html     one file that needs no other and asks for none: open it, send it\n\n"
        "A section a study and protocol: the headline table, samples of the same noise and labels at each\n"
        "loop count beside the unique-layer twin, and the figures of analysis/, each a command of its own:\n"
        "  python -m eltlab.analysis.{pareto,anytime,ablation,dynamics,scaling} --help"
    )


def main(arguments: list[str]) -> None:
    asked, others = own_keys(arguments, Asked())
    if others:
        key = others[0].partition("=")[0]
        raise UserError(f"{others[0]}: {suggest(key, ['runs_dir', 'out'], 'keys')}")
    out = Path(asked.out).expanduser()
    if out.suffix != ".html":
        raise UserError(f"out={asked.out}: the page is an .html file")
    from eltlab.analysis.command import read_report_rows
    from eltlab.analysis.page import render_page

    table, source = read_report_rows(asked.runs_dir)
    html = render_page(table, source, lambda title: print(f"report: {title}", file=sys.stderr))
    write_atomic(out, html)
    print(f"report: {out}")


if __name__ == "__main__":
    run_command(main, usage, stopped="no page was written")
