"""The tests mirror the sources, share code through support/ alone, and keep to its names."""

import ast
from pathlib import Path

import pytest
from conftest import PLUGINS
from support.paths import ROOT

TESTS, SOURCE = ROOT / "tests", ROOT / "src" / "eltlab"
# Folders whose tests belong to no single source file.
OTHER = ("processes", "project", "support")


def source_files() -> list[Path]:
    """Every source file of the package, analysis included, relative to it."""
    # analysis is a link, which rglob does not follow.
    found = [*SOURCE.rglob("*.py"), *(SOURCE / "analysis").rglob("*.py")]
    return sorted({path.relative_to(SOURCE) for path in found if path.name != "__init__.py"})


def files_of_tests() -> list[Path]:
    return sorted(path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))


def mirrored(source: Path) -> Path:
    return source.with_name(f"test_{source.name}")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, with the names that it imports from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def python_files() -> list[Path]:
    return sorted(TESTS.rglob("*.py"))


def test_every_source_file_has_its_test_file() -> None:
    assert len(source_files()) > 100
    missing = [str(source) for source in source_files() if not (TESTS / mirrored(source)).is_file()]
    assert missing == [], "source files without a test file at the same path under tests/"


def test_every_test_file_belongs_to_a_source_file() -> None:
    known = {mirrored(source) for source in source_files()}
    strange = [str(path) for path in files_of_tests() if path not in known and path.parts[0] not in OTHER]
    assert strange == [], f"test files without a source file; only {', '.join(OTHER)} may have them"


def test_support_has_no_tests_and_every_file_of_it_is_used() -> None:
    assert not list((TESTS / "support").rglob("test_*.py"))
    files = {f"support.{path.stem}" for path in (TESTS / "support").glob("*.py")} - {"support.__init__"}
    used = {f"support.{name}" for name in PLUGINS.split()}
    for path in python_files():
        used |= imported(path) - {f"support.{path.stem}"}
    assert files - used == set()


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(TESTS)))
def test_code_is_shared_through_support(path: Path) -> None:
    """A test module imports no other one: a test can then be moved or removed on its own."""
    names = {path.stem for path in files_of_tests()}
    for module in imported(path):
        parts = module.split(".")
        assert parts[0] != "tests" and not names & set(parts) and not module.startswith("."), module


def test_tiny_is_defined_once() -> None:
    """Several tiny configurations under one name would be mistaken for each other."""
    defined = [
        str(path.relative_to(TESTS))
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "TINY"
    ]
    assert defined == ["support/tiny_run.py"]
