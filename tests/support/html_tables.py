"""Reads the tables of an HTML page."""

from html.parser import HTMLParser
from typing import Any


class Tables(HTMLParser):
    """The cells of every table of a page, by the class of the table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[list[str]]]] = {}
        self.open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "table":
            self.rows: list[list[str]] = []
            self.found.setdefault(dict(attrs).get("class", ""), []).append(self.rows)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.rows[-1][-1] += data
