"""Drives a headless Chromium with Playwright: the system's browser, none is downloaded."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)


def chromium_path() -> str:
    """Return the browser; without one the test is skipped, or fails in CI."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    reason = "Chromium is not installed (make system)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Browser:
    """One page of a running browser, with all that it logged and requested.

    Attributes:
        said: what the page wrote to the console since it was opened, errors included.
        sent: requests since then.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.session = page.context.new_cdp_session(page)
        self.said: list[str] = []
        self.sent: list[Request] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.sent.append(request))

    def _console(self, message: ConsoleMessage) -> None:
        self.said.append(f"{message.type}: {message.text}")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        return self.session.send(method, params)

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file at a window size and theme, and wait until it is there."""
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.set_viewport_size({"width": width, "height": height})
        self.said.clear()
        self.sent.clear()
        self.page.goto(path.resolve().as_uri())

    def js(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; promises are awaited, exceptions fail."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse, as a person does."""
        self.js(
            f"document.querySelector({selector!r}).scrollIntoView({{block:'center',behavior:'instant'}})"
        )
        box = self.js(
            f"(({{x,y,width,height}}) => [x+width/2,y+height/2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left",
                      clickCount=1)  # fmt: skip

    def complaints(self) -> list[str]:
        """Return what the page wrote to the console, errors and violations included."""
        return list(self.said)

    def requests(self) -> list[str]:
        """Return the addresses that the page reached for and that its policy did not stop."""
        left = [request.url for request in self.sent if request.failure != "csp"]
        return [url for url in left if not url.startswith(("file:", "data:"))]

    def accessibility_faults(self) -> list[str]:
        """Return what axe-core finds serious or critical, each with the first elements at fault."""
        self.js(files("axe_playwright_python").joinpath("axe.min.js").read_text() + ";0")
        found = json.loads(self.js("axe.run().then((r) => JSON.stringify(r.violations))"))
        return [
            f"{fault['id']}: {fault['help']} {[node['html'][:120] for node in fault['nodes'][:3]]}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]

    def screenshot(self, path: Path) -> bytes:
        """Save what the window shows as PNG."""
        return self.page.screenshot(path=path)

    def pdf(self) -> bytes:
        """Print the page."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Run a browser with a fresh profile and end it afterwards."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium_path(), args=list(FLAGS), headless=True
        )
        try:
            yield Browser(context.pages[0])
        finally:
            context.close()
