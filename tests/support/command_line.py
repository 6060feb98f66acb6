"""Calls a verb as its command line does, and reads a folder before and after."""

import sys
from pathlib import Path

import pytest

from eltlab.common import command


def typed_in(verb: object, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a verb called with these arguments."""
    monkeypatch.setattr(sys, "argv", ["eltlab", *arguments])
    try:
        command.run_command(verb.main, verb.usage)  # type: ignore[attr-defined]
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def everything(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
