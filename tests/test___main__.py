"""The list of verbs, and the real commands with their real exit codes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import eltlab
from eltlab import __main__ as package_main


def test_the_package_lists_its_verbs(capsys) -> None:
    package_main.main([])
    listed = capsys.readouterr().out
    assert listed.splitlines()[0] == "usage: python -m eltlab.VERB [KEY=VALUE …]"
    package = Path(eltlab.__file__).parent
    verbs = [path.stem for path in package.glob("*.py") if "run_command(" in path.read_text()]
    for verb in set(verbs) - {"__main__"}:
        assert re.search(rf"^  {verb} +\S+ ", listed, re.MULTILINE), verb


def python_m(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)


@pytest.mark.integration
def test_a_verb_given_to_the_package_is_one_line() -> None:
    done = python_m("eltlab", "fitt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: fitt: run a verb as python -m eltlab.VERB; did you mean fit?\n"


@pytest.mark.integration
def test_the_real_help_of_a_verb_names_its_keys() -> None:
    done = python_m("eltlab.fit", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("python -m eltlab.fit ") and "budget.images" in done.stdout


def runnable() -> list[str]:
    """Every module that is a command of its own."""
    package = Path(eltlab.__file__).parent
    files = sorted([*package.glob("*.py"), *(package / "analysis").glob("*.py")])
    found = [path for path in files if "__name__ ==" in path.read_text() and path.stem != "__main__"]
    return [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in found]


@pytest.mark.slow
@pytest.mark.parametrize("module", runnable())
def test_every_command_starts_in_a_new_interpreter(module: str) -> None:
    """pytest's own imports would hide a missing or circular one."""
    done = python_m(module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert module in done.stdout


@pytest.mark.slow
def test_a_mistake_in_a_command_of_analysis_is_one_line() -> None:
    done = python_m("eltlab.analysis.table", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
