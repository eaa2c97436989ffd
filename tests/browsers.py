"""A real browser for the tests, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium", "opened"]

# Chromium's own traffic off; as root it needs to go without its sandbox.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def chromium() -> str:
    """The path of the Chromium that is installed; skips the test where there is none, or fails it if one must be there."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    missing = "no Chromium here to open the page with; get it with `apt-get install chromium`, or install Google Chrome"
    if os.environ.get("PREFCAST_NEED_BROWSER"):
        pytest.fail(f"PREFCAST_NEED_BROWSER is set, and there is {missing}")
    pytest.skip(missing)


@contextmanager
def opened() -> Iterator[Browser]:
    """One headless browser."""
    program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
