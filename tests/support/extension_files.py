"""The extensions of docs/extending.md as files, and runs that train with them."""

import re
from pathlib import Path

import pytest

from eltlab import fit
from support.paths import ROOT
from support.tiny_run import TINY, find_run

DOCS = ROOT / "docs" / "extending.md"
SMALL = [*TINY, "trainer.grids=0"]


@pytest.fixture(scope="session")
def extension_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, under the names that their first lines give."""
    folder = tmp_path_factory.mktemp("extensions")
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None
        (folder / name[1]).write_text(block)
    assert sorted(path.name for path in folder.iterdir()) == ["chain.py", "flow.py"]
    return folder


def trained(extension_files: Path, runs: Path, *overrides: str) -> Path:
    """The folder of a finished run of these overrides; {} stands for the folder of the files."""
    fit.main([*SMALL, f"runs_dir={runs}", *(text.format(extension_files) for text in overrides)])
    return find_run(runs)
