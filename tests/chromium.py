"""Headless Chromium, driven by playwright, for pages of `lit-rft show`; for tests and benchmarks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser of playwright's synchronous interface.

    Raises:
        SystemExit: Chromium or playwright is missing.
    """
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("needs playwright: pip install 'lit-rft[browser]'") from None
    if path is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
