"""Checks that the tests notice defects: applies those of mutation_table.py, one by one, to a copy of eltlab.

    python benchmarks/mutations.py [NAME ...] [jobs=1] [out=FILE.jsonl] [tier=file|package|test|slow]

Names select defects; without names, all of them. For each defect, pytest runs the tests of its file, then
those of its package and of tests/processes, then all that `make test` runs and, with tier=slow, the slow
ones. tier= ends the search earlier; the same command with a later tier continues it. It stops at the first
failure. In the end, the tests that failed run once without any defect: a failure counts if its test passes
then. A call that takes too long is a hang, and one that a signal ends is a crash; both count if the same
call passes without the defect.

out= appends the results to a file; the same command then continues with what is not in it. Exit code 1 if a
defect survived, or if an error hides whether it did.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event
from typing import NamedTuple

from mutation_table import MUTATIONS, Mutation

from eltlab.common.command import run_command
from eltlab.common.errors import UserError, suggest
from eltlab.common.processes import terminate
from eltlab.common.signals import listening
from eltlab.common.text import format_table

ROOT = Path(__file__).resolve().parents[1]
TIERS = ("file", "package", "test", "slow")  # of the calls of pytest, in their order
DEFAULTS = {"jobs": "1", "out": "", "tier": "test"}
PYTEST = (sys.executable, "-m", "pytest", "-x", "-n0", "-q", "-rfE", "-p", "no:cacheprovider")
FAST = ("-m", "not slow and not chaos")
# Limits of a call: of a file or a package, of all that `make test` runs, and of the slow tests, which take
# over an hour in one process.
PART_SECONDS, TEST_SECONDS, SLOW_SECONDS = 600.0, 3600.0, 4 * 3600.0
GRACE = 10.0  # seconds that pytest has to end after SIGTERM
# In pytest's summary: the test, whose parameters may contain " - ", and its message.
FAILURES = re.compile(r"^(?:FAILED|ERROR) (\S+?\[.*?\]|.+?)(?: - .*)?$", re.MULTILINE)
PASSED, FAILED, NOTHING_COLLECTED = 0, 1, 5  # exit codes of pytest; 2 to 4 mean that it could not run


class Call(NamedTuple):
    """A call of pytest."""

    tier: str
    arguments: list[str]
    limit: float = PART_SECONDS


class Result(NamedTuple):
    name: str
    outcome: str  # caught, hang, crash, survived or error
    tier: str  # of the call that ended the search; of the last call if it survived
    test: str  # that failed, or what is wrong
    seconds: float

    @property
    def is_caught(self) -> bool:
        return self.outcome in ("caught", "hang", "crash")


class Cancelled(Exception):
    """The user stopped the script."""


# --- a copy of the checkout -----------------------------------------------------------------------


def make_copy(folder: Path) -> Path:
    """Copies the files that git does not ignore. Raises UserError if Python imports eltlab from elsewhere."""
    copy = folder / "checkout"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):  # not deleted in the working tree
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    probe = [sys.executable, "-c", "import eltlab; print(eltlab.__file__)"]
    done = subprocess.run(probe, cwd=copy, env=environment(copy), capture_output=True, text=True, check=True)
    if not Path(done.stdout.strip()).is_relative_to(copy):
        raise UserError(f"eltlab is imported from {done.stdout.strip()} and not from the copy, {copy}")
    return copy


def environment(copy: Path) -> dict[str, str]:
    """The environment of pytest, in which the copy comes before an editable installation of the checkout."""
    path = os.pathsep.join(filter(None, [str(copy / "src"), os.environ.get("PYTHONPATH")]))
    inherited = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    return inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def applied(mutation: Mutation, copy: Path) -> Iterator[None]:
    """The copy has the defect inside the block."""
    path = copy / "src" / "eltlab" / mutation.file
    text = path.read_text()
    write_source(path, text.replace(mutation.old, mutation.new))
    try:
        yield
    finally:
        write_source(path, text)


def write_source(path: Path, text: str) -> None:
    path.write_text(text)
    # Python compares whole seconds and sizes, so it could use the bytecode of the previous text.
    Path(cache_from_source(path)).unlink(missing_ok=True)


# --- pytest ---------------------------------------------------------------------------------------


def plan_calls(file: str, root: Path, tier: str) -> list[Call]:
    """The calls of pytest for a defect in this file; those most likely to notice it come first."""
    path = Path(file)
    calls: list[Call] = []
    seen: list[str] = []
    for place in (path.with_name(f"test_{path.name}"), *path.parents[:-1]):
        name = str("tests" / place)
        if (root / name).exists():
            calls.append(Call("file" if place.suffix else "package", [*FAST, name, *seen]))
            seen.append(f"--ignore={name}")  # by the later calls: it has passed
    calls.append(Call("package", [*FAST, "tests/processes"]))
    calls.append(Call("test", [*FAST, *seen, "--ignore=tests/processes"], TEST_SECONDS))
    calls.append(Call("slow", ["-m", "slow"], SLOW_SECONDS))
    return [call for call in calls if TIERS.index(call.tier) <= TIERS.index(tier)]


def run_pytest(copy: Path, arguments: list[str], limit: float, stop: Event) -> tuple[int | None, str]:
    """The exit code, or None if it takes longer than `limit` seconds, and the output. Raises Cancelled."""
    command = [*PYTEST, f"--basetemp={copy.parent / 'tmp'}", *arguments]
    with (copy.parent / "output").open("w+", errors="replace") as output:
        child = subprocess.Popen(
            command, cwd=copy, env=environment(copy), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + limit
        try:
            while (code := child.poll()) is None and time.monotonic() < deadline:
                if stop.is_set():
                    raise Cancelled
                time.sleep(0.1)
        finally:
            terminate([child], GRACE)
        output.seek(0)
        return code, output.read()


def judge(mutation: Mutation, copies: "SimpleQueue[Path]", calls: list[Call], stop: Event) -> Result:
    """Runs the calls in a copy with the defect until one fails. Raises Cancelled."""
    copy, started = copies.get(), time.monotonic()
    try:
        with applied(mutation, copy):
            for call in calls:
                code, output = run_pytest(copy, call.arguments, call.limit, stop)
                if code not in (PASSED, NOTHING_COLLECTED):
                    break
        seconds = round(time.monotonic() - started, 1)
        if code in (PASSED, NOTHING_COLLECTED):
            return Result(mutation.name, "survived", call.tier, "", seconds)
        found = explain(code, output)
        if found[0] in ("hang", "crash"):
            code, _ = run_pytest(copy, call.arguments, call.limit, stop)
            if code != PASSED:
                how = f"takes over {call.limit:g} s" if code is None else "fails"
                found = "error", f"{shlex.join(call.arguments)}: {how} without the defect as well"
        return Result(mutation.name, found[0], call.tier, found[1], seconds)
    finally:
        copies.put(copy)


def explain(code: int | None, output: str) -> tuple[str, str]:
    """How a call failed, and the test that did."""
    if code is None:
        return "hang", ""
    if code < 0:
        return "crash", f"signal {-code}"
    if code == FAILED and (failed := FAILURES.findall(output)):
        return "caught", failed[0]
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return "error", f"pytest exited with {code}: {last}"


def failing_without(results: list[Result], stop: Event) -> list[Result]:
    """Errors in place of the results whose test fails without the defect as well. Raises UserError."""
    tests = sorted({result.test for result in results if result.outcome == "caught"})
    if not tests:
        return []
    with TemporaryDirectory(prefix="mutations-") as place:
        copy = make_copy(Path(place).resolve())
        code, output = run_pytest(copy, ["--maxfail=0", *tests], TEST_SECONDS, stop)
    if code not in (PASSED, FAILED):
        raise UserError(f"the tests that failed do not run without the defects: {explain(code, output)[1]}")
    failed, why = set(FAILURES.findall(output)), "fails without the defect as well"
    return [r._replace(outcome="error", test=f"{r.test}: {why}") for r in results if r.test in failed]


# --- the command line -----------------------------------------------------------------------------


def parse_arguments(arguments: list[str]) -> tuple[list[Mutation], int, Path | None, str]:
    """The selected defects, jobs, out and tier. Raises UserError."""
    keys = DEFAULTS | dict(text.split("=", 1) for text in arguments if "=" in text)
    names = [text for text in arguments if "=" not in text]
    for key in keys:
        if key not in DEFAULTS:
            raise UserError(f"unknown key {key}: {suggest(key, [*DEFAULTS], 'keys')}")
    known = [mutation.name for mutation in MUTATIONS]
    for name in names:
        if name not in known:
            raise UserError(f"{name}: no such defect; their names are in benchmarks/mutation_table.py")
    if not keys["jobs"].isdecimal() or keys["jobs"] == "0":
        raise UserError(f"jobs={keys['jobs']}: give a number of at least 1")
    if keys["tier"] not in TIERS:
        raise UserError(f"tier={keys['tier']}: choose one of {', '.join(TIERS)}")
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    return chosen, int(keys["jobs"]), Path(keys["out"]) if keys["out"] else None, keys["tier"]


def check_table() -> None:
    """Raises UserError if a defect does not fit the source, so that the table is kept up to date."""
    for name, _, file, old, new in MUTATIONS:
        path = ROOT / "src" / "eltlab" / file
        text = path.read_text() if path.is_file() else ""
        if text.count(old) != 1:
            raise UserError(
                f"{name}: {old!r} occurs {text.count(old)} times in src/eltlab/{file}, not once; update "
                "benchmarks/mutation_table.py"
            )
        ast.parse(text.replace(old, new), file)


def read_results(out: Path | None) -> dict[str, Result]:
    """The last result of each defect in a file; none if there is no file."""
    lines = out.read_text().splitlines() if out is not None and out.is_file() else []
    return {result.name: result for result in (Result(**json.loads(line)) for line in lines)}


def remaining_calls(mutation: Mutation, before: Result | None, tier: str) -> list[Call]:
    """The calls that an earlier result leaves to do: all after an error, later tiers after a survival."""
    calls = plan_calls(mutation.file, ROOT, tier)
    if before is None or before.outcome == "error":
        return calls
    if before.outcome != "survived":
        return []
    return [call for call in calls if TIERS.index(call.tier) > TIERS.index(before.tier)]


def run_all(
    mutations: list[Mutation], jobs: int, out: Path | None, tier: str, results: dict[str, Result]
) -> None:
    """Judges the defects, and adds a result of each to `results` and to the file."""
    by_name, stop = {mutation.name: mutation for mutation in mutations}, Event()
    todo = {m: calls for m in mutations if (calls := remaining_calls(m, results.get(m.name), tier))}
    if not todo:
        return
    with TemporaryDirectory(prefix="mutations-") as place, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(min(jobs, len(todo))):
            copies.put(make_copy(Path(place).resolve() / str(number)))
        futures = [pool.submit(judge, mutation, copies, calls, stop) for mutation, calls in todo.items()]
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                result = future.result()
                results[result.name] = result
                if out is not None:
                    with out.open("a") as file:
                        file.write(json.dumps(result._asdict()) + "\n")
                print(f"{number} of {len(todo)}, {describe(result, by_name[result.name])}", flush=True)
        finally:  # after Ctrl-C the threads end their calls
            stop.set()
            pool.shutdown(cancel_futures=True)


def describe(result: Result, mutation: Mutation) -> str:
    """One line: the test that failed, or what no test noticed."""
    missed = f"{mutation.breaks} (src/eltlab/{mutation.file})" if result.outcome == "survived" else ""
    parts = (result.outcome, result.tier, f"{result.seconds:.0f} s", result.test, missed)
    return f"{result.name}: {', '.join(filter(None, parts))}"


def table_lines(results: list[Result]) -> list[str]:
    """A line for each result, with the test at its end, and a line with the number of each outcome."""
    rows = [[r.name, r.outcome, r.tier, f"{r.seconds:.0f}"] for r in results]
    lines = format_table([["defect", "outcome", "tier", "seconds"], *rows])
    tests = ["test", *(result.test for result in results)]
    outcomes = [result.outcome for result in results]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes)]
    return [f"{line}  {test}".rstrip() for line, test in zip(lines, tests, strict=True)] + [", ".join(counts)]


def main(arguments: list[str]) -> None:
    mutations, jobs, out, tier = parse_arguments(arguments)
    check_table()
    results = read_results(out)
    with listening():
        run_all(mutations, jobs, out, tier, results)
        shown = [results[mutation.name] for mutation in mutations]
        results |= {result.name: result for result in failing_without(shown, Event())}
    shown = [results[mutation.name] for mutation in mutations]
    print(*table_lines(shown), sep="\n")
    if not all(result.is_caught for result in shown):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, lambda _: str(__doc__), "the same command continues after the results in out=")
