"""The version that rows record, and the folders that come with the package."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

from eltlab.common import package_info
from eltlab.common.errors import UserError
from eltlab.common.package_info import (
    NUMERIC,
    SOURCE,
    __version__,
    code_version,
    confirm_source,
    package_folder,
    source_hash,
)

ask = code_version.__wrapped__  # other tests need the cached version


def test_the_version_is_that_of_the_project() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


@pytest.mark.integration
def test_a_checkout_adds_its_commit_and_a_plus_if_files_are_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "src" / "eltlab" / "common"
    place.mkdir(parents=True)
    (place / "package_info.py").touch()
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
    ]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"], ["tag", "-m", "v", "v9"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    monkeypatch.setattr(package_info, "__file__", str(place / "package_info.py"))
    version, _, short = ask().partition("-")
    assert version == __version__ and len(short) >= 7 and commit.startswith(short)  # and not the tag
    (place / "package_info.py").write_text("edited")
    assert ask() == f"{__version__}-{short}+"


def test_without_a_checkout_it_is_the_version_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site" / "eltlab" / "common" / "package_info.py"
    monkeypatch.setattr(package_info, "__file__", str(place))
    assert ask() == __version__


def test_folders_are_inside_the_package_or_at_the_top_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package_folder("conf") == ROOT / "conf" and (package_folder("sweeps") / "demo.sh").is_file()
    installed = tmp_path / "a" / "b" / "eltlab"
    (installed / "conf").mkdir(parents=True)
    monkeypatch.setattr(package_info, "__file__", str(installed / "common" / "package_info.py"))
    assert package_folder("conf") == installed / "conf"
    assert package_folder("docs") == tmp_path / "a" / "docs"


# --- the source -----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__", "analysis")
    return Path(shutil.copytree(Path(package_info.__file__).parents[1], tmp_path / "eltlab", ignore=ignored))


def test_the_source_is_the_same_wherever_the_package_is(package: Path) -> None:
    assert source_hash(package) == SOURCE and len(SOURCE) == 12


@pytest.mark.parametrize("folder", NUMERIC)
def test_an_edit_of_what_numbers_depend_on_changes_the_source(package: Path, folder: str) -> None:
    path = max((package / folder).rglob("*.py"), key=lambda path: len(path.parts))  # in a subfolder, if any
    path.write_bytes(path.read_bytes() + b"#")
    assert source_hash(package) != SOURCE
    path.write_bytes(path.read_bytes()[:-1])
    assert source_hash(package) == SOURCE
    path.rename(path.with_name("renamed.py"))
    assert source_hash(package) != SOURCE


def test_an_edit_of_verbs_and_studies_does_not_change_the_source(package: Path) -> None:
    for name in ("fit.py", "cluster.py", "studies/study.py"):
        (package / name).write_text("edited")
    (package / "training" / "notes.txt").write_text("not code")
    (package / "training" / ".#train.py").symlink_to("an editor's lock")
    assert source_hash(package) == SOURCE


def test_an_edit_while_the_package_is_imported_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_info, "__file__", str(package / "common" / "package_info.py"))
    confirm_source.__wrapped__()
    (package / "training" / "train.py").write_text("edited")
    with pytest.raises(UserError, match="edited while it was being imported; start the command again"):
        confirm_source.__wrapped__()
