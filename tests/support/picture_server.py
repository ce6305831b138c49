"""A server on loopback that sends pictures well and badly, for tests of fetching."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from panollava.data.fetch import Fetcher
from support.picture_files import by_pillow, gradient

MakeFetcher = Callable[..., Fetcher]
PNG = by_pillow(gradient(), "PNG")
JPEG = by_pillow(gradient(), "JPEG")
HTML = b"<html><body>Photo no longer available</body></html>"


def picture(seed: int) -> bytes:
    """A whole panorama, another one for each seed."""
    return by_pillow(np.random.default_rng(seed).integers(0, 256, (16, 32, 3), np.uint8), "PNG")


class PictureServer(ThreadingHTTPServer):
    """Answers by path; ``<path>?<anything>`` behaves like ``<path>`` and is counted on its own.

    Attributes:
        asked: how often each path was asked for.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.hurry = threading.Event()
        """Set when the test is over: nothing sleeps any longer."""

    @property
    def port(self) -> int:
        return self.server_address[1]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PictureServer

    def log_message(self, format: str, *args: object) -> None:
        """Is silent."""

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.close_connection = True
        path = self.path.partition("?")[0].removeprefix("/")
        name, _, rest = path.partition("/")
        if name.isdecimal():
            self.whole(picture(int(name)), "image/png")
        else:
            getattr(self, name.replace("-", "_"))(rest)

    def whole(self, body: bytes, kind: str | None, status: int = 200, **headers: str) -> None:
        self.head(status, kind, len(body), **headers)
        self.wfile.write(body)

    def head(self, status: int, kind: str | None, length: int | None, **headers: str) -> None:
        self.send_response(status)
        said = {"Content-Type": kind, "Content-Length": None if length is None else str(length), **headers}
        for name, value in said.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def jpeg(self, rest: str) -> None:
        self.whole(JPEG, "image/jpeg; charset=binary")

    def untold(self, rest: str) -> None:
        self.whole(PNG, None)

    def png_called_jpeg(self, rest: str) -> None:
        self.whole(PNG, "image/jpeg")

    def html_called_jpeg(self, rest: str) -> None:
        self.whole(HTML, "image/jpeg")

    def png_called_html(self, rest: str) -> None:
        self.whole(PNG, "text/html; charset=utf-8")

    def gone(self, rest: str) -> None:
        self.whole(HTML, "text/html", status=404)

    def nothing(self, rest: str) -> None:
        self.whole(b"", "image/png")

    def packed(self, rest: str) -> None:
        self.whole(PNG, "image/png", Content_Encoding="gzip")

    def more_than_said(self, rest: str) -> None:
        self.head(200, "image/png", len(PNG) - 10)
        self.wfile.write(PNG)

    def less_than_said(self, rest: str) -> None:
        self.head(200, "image/png", len(PNG))
        self.wfile.write(PNG[: len(PNG) // 2])

    def cut_and_unsaid(self, rest: str) -> None:
        self.head(200, "image/jpeg", None)
        self.wfile.write(JPEG[:-20])

    def large(self, rest: str) -> None:
        self.head(200, "image/png", 10**9)

    def endless(self, rest: str) -> None:
        self.head(200, "image/jpeg", None, Transfer_Encoding="chunked")
        while not self.server.hurry.is_set():
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def half_once(self, rest: str) -> None:
        if self.server.asked[self.path] == 1:
            self.less_than_said(rest)
        else:
            self.whole(PNG, "image/png")

    def busy_once(self, rest: str) -> None:
        if self.server.asked[self.path] == 1:
            self.whole(b"", "text/plain", status=503, Retry_After=rest or "0")
        else:
            self.whole(PNG, "image/png")

    def silent(self, rest: str) -> None:
        self.server.hurry.wait(20)

    def drip(self, rest: str) -> None:
        self.head(200, "image/png", len(PNG))
        for at in range(len(PNG)):
            if self.server.hurry.wait(0.05):
                break
            self.wfile.write(PNG[at : at + 1])

    def slow(self, rest: str) -> None:
        """A picture in two halves, a moment apart."""
        body = picture(int(rest))
        self.head(200, "image/png", len(body))
        self.wfile.write(body[:100])
        self.server.hurry.wait(0.2)
        self.wfile.write(body[100:])

    def not_http(self, rest: str) -> None:
        self.wfile.write(b"220 mail.example ESMTP\r\n")

    def moved(self, rest: str) -> None:
        """To the rest of the path: ``/moved/jpeg``, ``/moved/http://elsewhere/a.jpg``."""
        self.whole(b"", None, status=302, Location=rest if ":" in rest else f"/{rest}")

    def circle(self, rest: str) -> None:
        self.whole(b"", None, status=301, Location=f"/circle/{1 - int(rest or 0)}")

    def stairs(self, rest: str) -> None:
        """As many redirects as it says and one more; each connection is closed late and without an announcement."""
        self.whole(b"", None, status=307, Location=f"/stairs/{int(rest) - 1}" if int(rest) else "/jpeg")
        self.server.hurry.wait(0.05)

    def nowhere(self, rest: str) -> None:
        self.whole(b"", None, status=302)


@contextmanager
def serving(wrap: Callable[[PictureServer], None] = lambda server: None) -> Iterator[PictureServer]:
    """A server that runs while the block does.

    Args:
        wrap: may change the server before it runs, say to speak TLS.
    """
    server = PictureServer()
    wrap(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hurry.set()
        time.sleep(0)
        server.shutdown()
        server.server_close()
        thread.join()
