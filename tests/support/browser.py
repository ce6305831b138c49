"""A browser for tests of the page: found on this machine, watched for errors and for requests to other hosts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL without a graphics card."""
COUNT_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
    violations.push(`${violatedDirective} ${blockedURI}`);
});
"""
PIXEL = """([x, y]) => {
    const canvas = document.querySelector("#sphere canvas");
    const context = canvas.getContext("webgl2");
    const pixel = new Uint8Array(4);
    const at = [Math.floor(canvas.width * x), Math.floor(canvas.height * (1 - y))];
    context.readPixels(...at, 1, 1, context.RGBA, context.UNSIGNED_BYTE, pixel);
    return [...pixel.slice(0, 3)];
}"""


def program() -> str | None:
    """The browser: of the variable PANOLLAVA_BROWSER, or one of ``NAMES`` on the PATH."""
    return os.environ.get("PANOLLAVA_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser that runs while the block does. Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    found = program()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH, and PANOLLAVA_BROWSER is not set")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page in a browser of its own storage.

    Args:
        browser: where it opens.
        url: the server's address.
        settings: of the context, such as ``locale``, ``viewport`` and ``color_scheme``.
    """

    def __init__(self, browser: Browser, url: str, **settings: Any) -> None:
        chosen: dict[str, Any] = {"locale": "en-US", "reduced_motion": "reduce", **settings}
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1000, "height": 640}, **chosen})
        self.context.set_default_timeout(30_000)  # beside other tests on few cores
        self.context.add_init_script(COUNT_VIOLATIONS)
        self.page: Page = self.context.new_page()
        self.url, self.errors, self.requests = url, [], []
        self.page.on("console", lambda message: message.type in {"error", "warning"} and self._wrong(message.text))
        self.page.on("pageerror", lambda error: self._wrong(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _wrong(self, text: str) -> None:
        self.errors.append(text)

    def open(self, fragment: str = "") -> Page:
        """Loads the page and waits for its first picture."""
        self.page.goto(self.url + "/" + fragment)
        self.page.wait_for_selector("html[data-ready=true]")
        return self.page

    def ask(self, question: str) -> None:
        """Asks and waits for the end of the answers."""
        self.page.fill("#question", question)
        self.page.click("#ask")
        self.page.wait_for_selector("html:not([data-busy])")

    def answers(self) -> list[str]:
        return self.page.locator(".answer .words").all_inner_texts()

    def look(self, yaw: float, pitch: float = 0.0) -> None:
        """Turns the viewer and waits for its next picture."""
        move = """async ([yaw, pitch]) => {
            const rendered = new Promise((done) => panollava.viewer.addEventListener("render", done, { once: true }));
            panollava.viewer.rotate({ yaw: (yaw * Math.PI) / 180, pitch: (pitch * Math.PI) / 180 });
            panollava.viewer.needsUpdate();
            await rendered;
        }"""
        self.page.evaluate(move, [yaw, pitch])

    def yaw(self) -> float:
        """The viewer's direction in degrees, from 0 to 360."""
        return float(self.page.evaluate("(panollava.viewer.getPosition().yaw * 180) / Math.PI"))

    def pixel(self, x: float = 0.5, y: float = 0.5) -> list[int]:
        """Colour of the canvas at shares of its width and height, after it was drawn again."""
        self.look(self.yaw())
        found: list[int] = self.page.evaluate(PIXEL, [x, y])
        return found

    def drop(self, name: str, body: bytes | int, kind: str) -> None:
        """Drops a file on the viewer; a number stands for as many bytes of zero."""
        script = """([name, bytes, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type }));
            const target = document.querySelector("#sphere");
            for (const event of ["dragenter", "dragover", "drop"]) {
                target.dispatchEvent(new DragEvent(event, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }"""
        self.page.evaluate(script, [name, body if isinstance(body, int) else list(body), kind])

    def check(self, *expected: str) -> None:
        """No error in the console but the expected ones, no violation of the policy, no request to another host."""
        wrong = [one for one in self.errors if not any(part in one for part in expected)]
        assert wrong == []
        assert self.page.evaluate("window.violations") == []
        allowed = (self.url + "/", "blob:" + self.url, "data:")
        assert [one for one in self.requests if not one.startswith(allowed)] == []
