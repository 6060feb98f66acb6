"""The guard of the fast tier fails what does not belong there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

SUITE = """
import subprocess, sys, time
import pytest

def test_quick():
    pass

def test_slow():
    time.sleep(1)

def test_process():
    subprocess.run([sys.executable, "-c", ""])

@pytest.mark.integration
def test_marked():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1)"])
"""


@pytest.mark.integration
def test_an_unmarked_test_starts_no_process_and_keeps_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "support.tiers", "--limit=0.5", "-rA", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    for outcome, names in (("PASSED", "marked quick"), ("FAILED", "process slow")):
        ended = re.findall(rf"^{outcome} test_suite.py::test_(\w+)", done.stdout, re.MULTILINE)
        assert sorted(ended) == names.split()
    assert "an unmarked test takes at most 0.5 s, but this one took 1.0 s" in done.stdout
    assert "an unmarked test starts no process, but this one did (subprocess.Popen)" in done.stdout
