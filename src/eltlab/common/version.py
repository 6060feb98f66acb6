"""The version of eltlab, and the commit it runs from."""

import subprocess
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout ("+" behind: changed)."""
    top = Path(__file__).parents[3]
    if not (top / ".git").exists():
        return __version__
    describe = ["git", "-C", str(top), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(describe, capture_output=True, text=True, check=False)
    return f"{__version__}-{done.stdout.strip()}" if done.returncode == 0 else __version__
