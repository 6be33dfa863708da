"""A real browser on a real server: Chromium without a GPU, and what it must never report."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.webui.world import NAME, PASSWORD

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WINDOW: Final[ViewportSize] = {"width": 1600, "height": 950}
PATIENCE_S: Final = 30.0

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Silent(WSGIRequestHandler):
    """Keeps hundreds of requests out of a failed test's report."""

    def log_request(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(app: Flask, *, port: int = 0) -> Iterator[str]:
    """The address of a server with threads, as long as the block lasts."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def chromium(*more: str) -> Iterator[Browser]:
    """A browser, with these arguments besides."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *more])
        yield browser
        browser.close()


@dataclass
class Reader:
    """A signed-in person in front of the browser, and everything that went wrong there."""

    page: Page
    address: str
    troubles: list[str] = field(default_factory=list)
    asked_to_stay: int = 0
    """How often the browser asked whether to leave a page with something unsaved."""

    @classmethod
    def signed_in(cls, browser: Browser, address: str, *, name: str = NAME) -> "Reader":
        context = browser.new_context(viewport=WINDOW)
        reader = cls(context.new_page(), address)
        reader._watch()
        reader.page.goto(address)
        reader.page.fill("#name", name)
        reader.page.fill("#password", PASSWORD)
        reader.page.click("text=Sign in >> nth=-1")
        reader.page.wait_for_selector("#worklist")
        return reader

    def _watch(self) -> None:
        self.page.on(
            "console",
            lambda said: self.troubles.append(said.text) if said.type == "error" else None,
        )
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.expose_function("reportPolicy", self._note)
        self.page.expose_function("pwned", lambda: self.troubles.append("a payload ran"))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " reportPolicy(`policy: ${event.violatedDirective} ${event.blockedURI}`))"
        )

    def _note(self, trouble: str) -> None:
        self.troubles.append(trouble)

    def _dismiss(self, dialog: Any) -> None:
        if dialog.type == "beforeunload":
            self.asked_to_stay += 1
            dialog.accept()
            return
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def until(self, expression: str, argument: Any = None) -> Any:
        """The first truthy value of a JavaScript expression."""
        # Not page.wait_for_function: it compiles text in the page, which our policy forbids.
        end = time.monotonic() + PATIENCE_S
        while not (value := self.page.evaluate(expression, argument)):
            assert time.monotonic() < end, f"waited in vain for {expression}"
            self.page.wait_for_timeout(20)
        return value

    def mark(self, name: str) -> float:
        """Milliseconds from opening the page to a mark of the viewer."""
        value = self.until(
            "(name) => performance.getEntriesByName(name).map((mark) => mark.startTime)", name
        )
        return float(value[0])

    def open_study(self, study_id: int) -> None:
        """Open a study from the worklist and wait until all of it has arrived."""
        self.page.goto(self.address)
        self.page.click(f"tr[data-study='{study_id}'] a")
        self.page.wait_for_selector(".viewport.axial > canvas")
        self.until("() => performance.getEntriesByName('volume').length")
        self.frames()

    def frames(self, count: int = 3) -> None:
        """Let the page draw."""
        self.page.evaluate(
            "async (count) => { for (let i = 0; i < count; i++)"
            " await new Promise(requestAnimationFrame); }",
            count,
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.frames()

    def title(self, plane: str) -> str:
        return self.page.inner_text(f".viewport.{plane} .top-left")

    def slice_number(self, plane: str) -> int:
        """The number in a plane's title, such as 63 in "Axial  63/96"."""
        return int(self.title(plane).split()[1].split("/")[0])

    def readout(self, plane: str) -> str:
        return self.page.inner_text(f".viewport.{plane} .bottom-left")


def looking(browser: Browser, address: str, study_id: int, *, name: str = NAME) -> Reader:
    """A person with the study open and its review shown."""
    reader = Reader.signed_in(browser, address, name=name)
    reader.open_study(study_id)
    reader.page.wait_for_selector(".review h2")
    return reader
