"""What the commands of analysis/ share: `[KEY=VALUE …] [ROWS …]`, mistakes in one line, and text that is
made for a place in a page."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from eltlab.common.atomic_files import write_atomic
from eltlab.common.command import is_key_value, run_command
from eltlab.common.errors import UserError, suggest
from eltlab.common.package_folders import package_folder
from eltlab.runs import result_table

if TYPE_CHECKING:
    from pandas import DataFrame


def run(main: Callable[["DataFrame", Any], None], doc: str, **keys: str | None) -> None:
    """Calls main(table, asked) with the rows and keys of the command line, as the verbs are called.

    keys: what may be asked for, with defaults; asked holds them as attributes. ROWS are run folders, .jsonl
    files of rows or names of committed ones; runs where there are none.
    """

    def of(arguments: list[str]) -> None:
        asked = dict(keys)
        for key, _, value in (text.partition("=") for text in arguments if is_key_value(text)):
            if key not in keys:
                raise UserError(f"{key}={value}: {suggest(key, list(keys), 'keys')}")
            asked[key] = value
        main(
            read(*(text for text in arguments if not is_key_value(text))), SimpleNamespace(**asked)
        )

    run_command(of, lambda: doc.strip(), stopped="the same command begins anew")


def committed() -> list[Path]:
    """The files of rows that come with eltlab, made by its studies."""
    return sorted((package_folder("analysis") / "data").glob("*.jsonl"))


def read(*rows: str) -> "DataFrame":
    """One table of folders, files and names of committed rows; of runs/ where nothing is named.

    Raises UserError for what is none of them.
    """
    known = {path.stem: path for path in committed()}
    paths = [
        known[text] if text in known and not Path(text).exists() else Path(text)
        for text in rows or ("runs",)
    ]
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path}: no such folder or file of rows; committed are {', '.join(known)}"
            )
    return result_table.load(*paths)


def replace_block(file: Path, name: str, text: str) -> None:
    """Puts text between the markers <!-- name --> and <!-- /name --> of a Markdown file."""
    whole = file.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise UserError(f"{file}: needs the markers {begin} and {end}, once each")
    before, rest = whole.split(begin)
    _, after = rest.split(end)
    write_atomic(file, f"{before}{begin}\n\n{text}\n\n{end}{after}")
