"""The three tiers of tests, and the guard that keeps the fast one fast (a pytest plugin).

A test without a mark starts no process and takes about a second. Marked `integration`, it is one real
case of a proof; marked `slow`, it belongs to the full matrix; marked `chaos`, it kills at random.
"""

import random
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

TIERS = ("integration", "slow", "chaos")
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}  # Python's audit events

started: list[str] = []  # the events of the current test
WAITED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--limit", type=float, help="seconds after which an unmarked test fails")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")


def pytest_configure(config: pytest.Config) -> None:
    from eltlab.common.package_info import confirm_source

    # Starts git and caches the answer: no test is blamed for that process, nor for edits during the tests.
    confirm_source()
    sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("shuffle")) is not None:
        random.Random(seed).shuffle(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    started.clear()
    item.stash[WAITED] = seconds_waited()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails an unmarked test that has started a process, or that was slower than --limit.

    Fixtures are not counted, because tests share them. Durations leave out the time in which this process
    waited for a core: a busy machine fails no test.
    """
    report, waited = (yield), seconds_waited()
    report.duration = max(0.0, report.duration - (waited - item.stash[WAITED]))
    item.stash[WAITED] = waited
    if report.when != "call" or not report.passed or any(map(item.get_closest_marker, TIERS)):
        return report
    limit, why = item.config.getoption("limit"), None
    if started:
        why = f"an unmarked test starts no process, but this one did ({started[0]})"
    elif limit is not None and report.duration > limit:
        why = f"an unmarked test takes at most {limit:g} s, but this one took {report.duration:.1f} s"
    if why is not None:
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: {why}; mark it integration or slow"
    return report


def seconds_waited() -> float:
    """How long this process, ready to run, has waited for a core so far; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
