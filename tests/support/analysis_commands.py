"""Runs the commands of analysis in this process, which has imported what they need."""

import io
import runpy
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from support.paths import ROOT

# The commands that print a table: their arguments, and a part of the table.
TABLES = {
    "headline": (["anytime_diffusion"], "40.29 ± 8.96"),
    "study": (["anytime_quick"], "vanilla-loops4"),
}


def run(name: str, *arguments: object, cwd: Path = ROOT) -> "CompletedProcess[str]":
    """What `python -m eltlab.analysis.NAME ARGUMENTS` prints, and its exit code."""
    module, out, err, code = f"eltlab.analysis.{name}", io.StringIO(), io.StringIO(), 0
    command = [module, *map(str, arguments)]
    with (
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch("sys.argv", command),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # from runpy: the module is imported already
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return CompletedProcess(command, code, out.getvalue(), err.getvalue())
