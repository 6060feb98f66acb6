"""The version of eltlab, its source as imported, the commit it runs from, and its folders conf/, sweeps/ and
analysis/."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from eltlab.common.errors import UserError

__version__ = "0.1.0"

# The folders of the package whose code can change a trained weight or a measured number. Verbs, studies,
# cluster and analysis cannot: an edit there does not keep a run of weeks from resuming.
NUMERIC = ("common", "config", "data", "evaluation", "generation", "model", "runs", "training")


def source_hash(package: Path | None = None) -> str:
    """Twelve hex digits that hash the paths and bytes of the files of NUMERIC, as they are on disk now."""
    package = package or Path(__file__).parents[1]
    total = hashlib.sha256()
    for folder in NUMERIC:
        for path in sorted((package / folder).rglob("*.py")):
            if path.is_file():  # an editor's lock may be a link to nowhere
                content = path.read_bytes()
                total.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
                total.update(content)
    return total.hexdigest()[:12]


# The hash at the start of this process, which takes milliseconds. Later edits do not change what it has
# imported.
SOURCE = source_hash()


@cache
def confirm_source() -> None:
    """To be called after the last import and before any work: fixes the commit that `code_version` names.
    Raises UserError if the source was edited since the process started, as it may have imported a mixture.

    Cached, so that the forks of a worker, which import nothing more, do not look at the disk again.
    """
    code_version()
    if source_hash() != SOURCE:
        raise UserError(
            "the source of eltlab was edited while it was being imported; start the command again"
        )


@cache
def code_version() -> str:
    """The version, with the commit in a checkout; "+" at the end means edited files."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return __version__
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(describe, capture_output=True, text=True, check=False)
    return f"{__version__}-{done.stdout.strip()}" if done.returncode == 0 else __version__


def describe_code(code: str | None = None, source: str | None = None) -> str:
    """A version and its source, for messages; without arguments those of this process."""
    if code is None:
        code, source = code_version(), SOURCE
    return f"eltlab {code} (source {source or 'unknown'})"


def package_folder(name: str) -> Path:
    """conf, sweeps or analysis: inside the package in the wheel, at the top of a checkout."""
    packaged = Path(__file__).parents[1] / name
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / name
