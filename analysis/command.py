"""What the scripts of analysis/ share: `out=FILE [protocol=ID] PATHS…`, and mistakes in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

from eltlab.errors import UserError


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
