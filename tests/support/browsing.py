"""A service that listens, and a real browser that looks at its page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "chromium"
HOW = "apt-get install -y chromium fonts-noto-cjk"
WAIT = 120_000  # milliseconds: what the page shows comes when the machine gets round to it
_LONG_TASKS = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
}).observe({entryTypes: ['longtask']});
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    path = shutil.which(CHROMIUM)
    assert path, f"There is no {CHROMIUM} on this machine: {HOW}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, and what it did that no page may: call elsewhere, fail, or break its own policy."""

    page: Page
    base: str
    pictures: Path
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, page: Page, base: str, pictures: Path) -> Visit:
        """Watch a page from its beginning."""
        visit = cls(page, base, pictures)
        page.set_default_timeout(WAIT)
        page.add_init_script(_LONG_TASKS)
        page.on("request", lambda request: visit.saw(request.url))
        page.on("pageerror", lambda error: visit.wrong.append(f"error: {error}"))
        page.on("console", lambda message: visit.heard(message.text))
        return visit

    def saw(self, url: str) -> None:
        if not url.startswith((f"{self.base}/", "blob:", "data:")):
            self.wrong.append(f"request: {url}")

    def heard(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.wrong.append(text)

    def go(self, path: str = "/") -> None:
        """Open a view and wait until its modules run."""
        self.page.goto(f"{self.base}{path}")
        self.page.wait_for_selector("html[data-ready=true]")

    def keep(self, name: str) -> None:
        """Keep a screenshot, and find nothing that shuts anybody out."""
        self.until("[...document.images].every((one) => !one.checkVisibility() || one.complete)")
        self.until("[...document.querySelectorAll('#grid .cell a')].every((one) => !one.checkVisibility() || one.href)")
        self.page.screenshot(path=self.pictures / f"{name}.png")
        found = Axe().run(self.page).response["violations"]
        assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]

    def until(self, script: str) -> None:
        """Wait for something to be so; the page's policy forbids it to evaluate texts by itself."""
        deadline = time.monotonic() + WAIT / 1000
        while not self.page.evaluate(script):
            assert time.monotonic() < deadline, f"never came to be: {script}"
            self.page.wait_for_timeout(50)

    def tiles(self) -> list[str]:
        """What the pictures in the grid are called, in their order."""
        script = """() => [...document.querySelectorAll('#grid .cell:not([hidden])')]
            .sort((a, b) => a.id.slice(5) - b.id.slice(5)).map((cell) => cell.querySelector('img').alt)"""
        names: list[str] = self.page.evaluate(script)
        return names
