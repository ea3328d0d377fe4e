"""A headless Chromium for the tests of pages: where it is, its start, and what a page may not do unseen."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def needs_chromium(what: str) -> pytest.MarkDecorator:
    """Skips, loudly, where there is none; `what` was not done then."""
    return pytest.mark.skipif(CHROMIUM is None, reason=f"NO CHROMIUM: {what} (apt-get install chromium)")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def complaints(page: Page, own: tuple[str, ...], excused: Callable[[str, str], bool] = lambda *_: False) -> list[str]:
    """A list that fills with errors, lines of the console and requests that start with none of `own`.

    Args:
        excused: (type, text) of a line of the console -> whether it is none.
    """
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: None if excused(line.type, line.text) else wrong.append(line.text))
    page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    return wrong
