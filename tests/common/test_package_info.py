"""The version that rows record, and the folders that come with the package."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

from eltlab.common import package_info
from eltlab.common.package_info import __version__, code_version, package_folder

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
