"""What the commands of analysis share: they read `[KEY=VALUE …] [ROWS …]` and exit as the verbs do."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from eltlab.common.command import is_key_value, run_command
from eltlab.common.errors import UserError, suggest
from eltlab.common.package_info import package_folder
from eltlab.runs import result_table
from eltlab.runs.row_files import SETTINGS

if TYPE_CHECKING:
    from pandas import DataFrame

COMMITTED = "committed"  # as runs_dir= of the report: all committed files


def run_analysis(main: Callable[["DataFrame", Any], None], doc: str, **keys: str | None) -> None:
    """Calls main(table, keys) with the rows and keys of the command line, and exits as the verbs do.

    keys: the known keys with their defaults; main gets them as attributes. ROWS are run folders, .jsonl
    files of rows or names of committed files; the default is runs/. Every command also takes the settings of
    measuring: guidance=1.5 keeps the rows measured at this value, settings=all makes each setting an arm.
    """

    def parse_and_run(arguments: list[str]) -> None:
        given = dict(keys)
        for key, _, value in (text.partition("=") for text in arguments if is_key_value(text)):
            known = [*keys, *SETTINGS, "settings"]
            if key not in known:
                raise UserError(f"{key}={value}: {suggest(key, known, 'keys')}")
            given[key] = value
        rows = [text for text in arguments if not is_key_value(text)]
        table = select_settings(read(*rows), given)
        main(table, SimpleNamespace(**{key: given[key] for key in keys}))

    run_command(parse_and_run, lambda _: doc.strip(), stopped="the same command starts again")


def select_settings(table: "DataFrame", given: dict[str, str | None]) -> "DataFrame":
    """The rows at the given settings (guidance=1.5); with settings=all, each setting is an arm."""
    from eltlab.analysis import chosen_settings

    for column in (name for name in SETTINGS if name in given):
        table = chosen_settings.select_setting(table, column, str(given[column]))
    how = given.get("settings", "chosen")
    if how not in ("chosen", "all"):
        raise UserError(f"settings={how}: chosen (by rows that are not reported) or all (each is an arm)")
    return chosen_settings.settings_as_arms(table) if how == "all" else table


def committed_files() -> list[Path]:
    """The files of rows that come with eltlab, from its own studies."""
    return sorted((package_folder("analysis") / "data").glob("*.jsonl"))


def read(*rows: str) -> "DataFrame":
    """One table of these folders, files and names of committed files; of runs/ if none is given.

    Raises UserError if one does not exist.
    """
    known = {path.stem: path for path in committed_files()}
    paths = [
        known[text] if text in known and not Path(text).exists() else Path(text) for text in rows or ("runs",)
    ]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder or file of rows; committed are {', '.join(known)}")
    return result_table.load(*paths)


def read_report_rows(runs_dir: str | None) -> "tuple[DataFrame, str]":
    """The rows of a report, and a description of where they are from.

    Without runs_dir: those of runs/, or the committed ones if runs/ has none.
    """
    if runs_dir == COMMITTED or (runs_dir is None and not result_table.find_row_files(Path("runs"))):
        return result_table.load(*committed_files()), "the studies that come with eltlab"
    return read(runs_dir or "runs"), runs_dir or "runs"
