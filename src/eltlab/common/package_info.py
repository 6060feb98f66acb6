"""The version of eltlab, the commit it runs from, and its folders conf/, sweeps/ and analysis/."""

import subprocess
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def code_version() -> str:
    """The version, with the commit in a checkout; "+" at the end means edited files."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return __version__
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(describe, capture_output=True, text=True, check=False)
    return f"{__version__}-{done.stdout.strip()}" if done.returncode == 0 else __version__


def package_folder(name: str) -> Path:
    """conf, sweeps or analysis: inside the package in the wheel, at the top of a checkout."""
    packaged = Path(__file__).parents[1] / name
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / name
