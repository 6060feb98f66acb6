"""A real headless browser: Debian's Chromium, driven by playwright, which is installed without one."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A playwright Browser; tests skip, with a reason, if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    # Chromium's sandbox refuses to run as root.
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A new page that records its console messages (.said) and the URLs that it requests (.requested)."""
    new = browser.new_page()
    new.said, new.requested = [], []
    new.on("console", lambda message: new.said.append(f"{message.type}: {message.text}"))
    new.on("pageerror", lambda error: new.said.append(f"exception: {error}"))
    new.on("request", lambda request: new.requested.append(request.url))
    yield new
    new.close()
