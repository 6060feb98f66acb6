"""The wheel contains conf/, sweeps/ and analysis/, and works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

from eltlab.runs.row_files import read_rows


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=ROOT, check=True)
    [path] = out.glob("*.whl")
    return path


@pytest.mark.integration
def test_the_wheel_contains_the_folders_next_to_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("conf", "sweeps", "analysis"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}:
                assert f"eltlab/{path.relative_to(ROOT)}" in names
    assert not [name for name in names if name.startswith(("conf/", "tests/"))]


@pytest.mark.integration
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "import eltlab; from eltlab.common.package_info import package_folder; "
        "print(eltlab.__file__); print(package_folder('conf')); "
        "from eltlab.analysis.command import read; print(len(read('anytime_quick'))); "
        "from eltlab import fit; fit.main(['budget.images=32', 'batch_size=32', 'evaluate=false', "
        "'model.width=16', 'trainer.grids=0'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    package, conf, rows, run = done.stdout.splitlines()
    assert Path(package).parent == site / "eltlab" and Path(conf) == site / "eltlab" / "conf"
    assert int(rows) == len(read_rows(ROOT / "analysis" / "data" / "anytime_quick.jsonl"))
    assert (tmp_path / run.removeprefix("run: ") / "checkpoints" / "last.ckpt").is_file()


def test_requirements_name_versions_and_hashes_and_no_index() -> None:
    for name in ("requirements.lock", "requirements-weights.txt", "requirements-videos.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text and "--" not in text.replace("--hash=", "")
        lines = text.splitlines()
        starts = [number for number, line in enumerate(lines) if line and line[0] not in "# "]
        assert starts
        for number in starts:
            assert "==" in lines[number] and lines[number].endswith("\\"), lines[number]
            assert lines[number + 1].startswith("    --hash=sha256:")
        assert f'"{name}",' in (ROOT / "pyproject.toml").read_text()  # the sdist builds and tests
