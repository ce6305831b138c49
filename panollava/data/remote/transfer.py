"""One picture over http or https: redirects followed with care, nothing longer or slower than allowed."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from threading import Timer
from typing import BinaryIO
from urllib.parse import urljoin

from panollava.data.remote.connect import connect
from panollava.data.remote.rules import Address, Failed, Rules, parse_address

PATIENCE = 15
"""A picture takes at most so many times the longest silence: a server may also send a byte now and then."""

MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Status codes that may be others in a while."""
_UNTOLD = {"", "application/octet-stream", "binary/octet-stream"}
"""Content types of servers that do not look into their files."""
_BLOCK = 65_536
_LONGEST_WAIT_S = 120.0
_HEADERS = {"User-Agent": "panollava", "Accept": "image/jpeg, image/png", "Connection": "close"}


@dataclass(frozen=True)
class Limits:
    """What a picture may cost.

    Attributes:
        timeout_s: longest silence.
        max_bytes: of a picture.
    """

    timeout_s: float
    max_bytes: int


@dataclass(frozen=True)
class Received:
    """What came.

    Attributes:
        source: the address that it came from in the end.
        sha256: of the bytes.
        size: their number.
    """

    source: str
    sha256: str
    size: int


def download(
    text: str, rules: Rules, limits: Limits, into: BinaryIO, stopped: Callable[[], bool] = lambda: False
) -> Received:
    """Fetches a picture.

    Args:
        text: its address.
        rules: check every host that is asked.
        limits: of size and time.
        into: gets the bytes; those of a download that fails are worth nothing.
        stopped: asked between the parts; True breaks the download off.

    Raises:
        Failed: nothing came, or not what was wanted.
        OSError: `into` cannot be written.
    """
    address = parse_address(text)
    visited = {address.text}
    with _deadline(limits.timeout_s * PATIENCE) as watch:
        for _ in range(MOST_REDIRECTS + 1):
            rules.check(address)
            with _answer(address, rules, limits, watch) as response:
                if response.status not in _REDIRECTS:
                    _check(response, limits)
                    return _receive(response, address, limits, into, watch, stopped)
                address = _next(address, response.headers.get("Location"))
            if address.text in visited:
                raise Failed(f"its redirects go round in a circle, by way of {address.text}")
            visited.add(address.text)
    raise Failed(f"more than {MOST_REDIRECTS} redirects")


class _Watch:
    """Ends a connection that takes too long, however steadily it drips."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._sock: socket.socket | None = None

    def over(self, sock: socket.socket) -> None:
        """Watches this socket from now on."""
        self._sock = sock
        if self.expired:
            self.expire()

    def expire(self) -> None:
        """Wakes whoever waits for the socket."""
        self.expired = True
        if self._sock is not None:
            with suppress(OSError):  # closed in the meantime
                self._sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _deadline(seconds: float) -> Iterator[_Watch]:
    watch = _Watch(seconds)
    timer = Timer(seconds, watch.expire)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()


@contextmanager
def _answer(address: Address, rules: Rules, limits: Limits, watch: _Watch) -> Iterator[HTTPResponse]:
    with _told(address, limits, watch):
        line = connect(address, rules, limits.timeout_s)
    with closing(line.connection):
        with _told(address, limits, watch):
            watch.over(line.sock)
            line.connection.putrequest("GET", line.target, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": address.host_header, **_HEADERS, **line.headers}.items():
                line.connection.putheader(name, value)
            line.connection.endheaders()
            response = line.connection.getresponse()
        with response:
            yield response


@contextmanager
def _told(address: Address, limits: Limits, watch: _Watch) -> Iterator[None]:
    """Errors of the network as reasons; no file is touched inside."""
    try:
        yield
    except (OSError, HTTPException) as error:
        if watch.expired:
            raise Failed(f"not here after {watch.seconds:g} s", passing=True) from error
        raise _reason(error, address, limits) from error


def _reason(error: Exception, address: Address, limits: Limits) -> Failed:
    if isinstance(error, socket.gaierror):
        return Failed(f"the host {address.host} is not known", passing=True)
    if isinstance(error, TimeoutError):
        return Failed(f"the server was silent for {limits.timeout_s:g} s", passing=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failed(f"the certificate of {address.host} is not trusted ({error.verify_message})")
    return Failed(f"the connection broke ({type(error).__name__}: {error})", passing=True)


def _next(address: Address, location: str | None) -> Address:
    if not location:
        raise Failed("it redirects to nowhere")
    try:
        following = parse_address(urljoin(address.text, location))
    except (Failed, ValueError) as error:
        raise Failed(f"it redirects to {location!r}: {error}") from None
    if (address.scheme, following.scheme) == ("https", "http"):
        raise Failed(f"it redirects from https to http: {following.text}")
    return following


def _check(response: HTTPResponse, limits: Limits) -> None:
    """Whether the answer announces a picture."""
    if response.status != 200:
        passing = response.status in _PASSING
        raise Failed(f"HTTP {response.status} {response.reason}".strip(), passing=passing, wait_s=_asked_wait(response))
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in _UNTOLD:
        raise Failed(f"the server sends {kind}, not a picture")
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise Failed(f"the server sends it {coding}-coded, without being asked to")
    if response.length is not None and response.length > limits.max_bytes:
        raise _too_large(f"{response.length / 1e6:.1f} MB", limits)


def _asked_wait(response: HTTPResponse) -> float:
    """Seconds that the server asks to wait; the form with a date is rare, and the usual wait does for it."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else 0.0


def _receive(
    response: HTTPResponse,
    address: Address,
    limits: Limits,
    into: BinaryIO,
    watch: _Watch,
    stopped: Callable[[], bool],
) -> Received:
    announced = response.length
    digest, size = hashlib.sha256(), 0
    while announced is None or size < announced:
        if stopped():
            raise Failed("stopped")
        with _told(address, limits, watch):
            # What is there already, not a whole block, so that a silence is noticed.
            part = response.read1(_BLOCK if announced is None else min(_BLOCK, announced - size))
        if not part:
            break
        size += len(part)
        if size > limits.max_bytes:
            raise _too_large(f"more than {limits.max_bytes / 1e6:g} MB", limits)
        digest.update(part)
        into.write(part)
    if watch.expired:
        raise Failed(f"not here after {watch.seconds:g} s", passing=True)
    if announced is not None and size < announced:
        raise Failed(f"it broke off after {size:,} of {announced:,} bytes", passing=True)
    return Received(address.text, digest.hexdigest(), size)


def _too_large(shown: str, limits: Limits) -> Failed:
    reason = f"{shown}; data.remote_max_mb={limits.max_bytes / 1e6:g} is the limit"
    return Failed(reason, option="remote_max_mb")
