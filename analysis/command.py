"""What the scripts of analysis/ share: `out=FILE [protocol=ID] PATHS…`, mistakes in one line, and text
that is made for a place in a page."""

import sys
from collections.abc import Callable
from pathlib import Path

from eltlab.errors import UserError
from eltlab.files import write_atomic


def replace_block(file: Path, name: str, text: str) -> None:
    """Puts text between the markers <!-- name --> and <!-- /name --> of a Markdown file."""
    whole = file.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise UserError(f"{file}: needs the markers {begin} and {end}, once each")
    before, rest = whole.split(begin)
    _, after = rest.split(end)
    write_atomic(file, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def run(main: Callable[[list[str], Path, str | None], None], doc: str) -> None:
    """Calls main(paths, out, protocol) with the command line's; exits 2 for a user's mistake."""
    options = dict(text.split("=", 1) for text in sys.argv[1:] if "=" in text)
    paths = [text for text in sys.argv[1:] if "=" not in text]
    try:
        if not paths or "out" not in options or set(options) - {"out", "protocol"}:
            raise UserError(f"usage:\n{doc.strip()}")
        main(paths, Path(options["out"]), options.get("protocol"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
