"""What every request passes: the host that it names, where it comes from, its key and its size."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEY_VARIABLE = "PANOLLAVA_API_KEY"
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page: nothing is loaded from another host, and no script stands in the page."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # the page's files may change with the package, and its pictures with the server
}
OPEN = "/api/info"
"""The route below ``/api`` that answers without the key, that it is needed."""
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Kinds of errors in the OpenAI form, by status; others are ``invalid_request_error``, or ``server_error`` from 500."""


_OWN_PAGE = "Open this server's own page, or ask it by a program, which sends no Origin and no Sec-Fetch-Site."
"""The way out where another site's page asks. No key allows it: that page would read the answers."""


class RefusedError(Exception):
    """A request that is not answered: an HTTP status and a sentence that says why, and what is allowed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message

    def response(self) -> Response:
        """The error in the OpenAI form."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": None, "code": None}
        headers = {"retry-after": "1"} if self.status == 429 else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        text = json.dumps({"error": error}, ensure_ascii=False)
        return Response(text, self.status, media_type="application/json", headers=headers)


class Guard:
    """ASGI middleware: refuses requests for other hosts, from other origins and without the key; sets headers.

    A page of another site can make a browser send requests to this server, also under a name that it owns (DNS
    rebinding). So ``Host`` must be an address, ``localhost`` or one of ``hosts``, and ``Origin``, where it is given,
    this server. No header allows other origins to read an answer.

    Args:
        hosts: names under which the server is reached, besides.
        key: that requests below ``/v1`` and ``/api`` must name; None for none.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], key: str | None) -> None:
        self.app, self.hosts, self.key = app, {"localhost", *(host.lower() for host in hosts)}, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except RefusedError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            way_out = f"Ask it by its address, or start it with hosts=[{_name(host)}]."
            raise RefusedError(403, f"Host {host!r} is no name of this server. {way_out}")
        origin, is_page = headers.get("origin"), not path.startswith(("/v1/", "/api/"))
        if origin is not None and _parts(origin).netloc.lower() != host.lower():
            raise RefusedError(403, f"Requests from pages of {origin} are not answered. {_OWN_PAGE}")
        if not is_page and headers.get("sec-fetch-site") in ("cross-site", "same-site"):  # as a picture of another page
            raise RefusedError(403, f"Requests from pages of other sites are not answered. {_OWN_PAGE}")
        if not is_page and path != OPEN and not has_key(self.key, headers):
            raise RefusedError(
                401, f"The key is missing or wrong. Send it as 'Authorization: Bearer <{KEY_VARIABLE}>'."
            )

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True


def has_key(key: str | None, headers: Headers) -> bool:
    """Whether a request names the key, or needs none."""
    if key is None:
        return True
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def _parts(address: str) -> SplitResult:
    """An address taken apart; empty parts of what is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _name(host: str) -> str:
    """The host without its port."""
    return _parts(f"//{host}").hostname or ""


PICTURES = "Send a smaller picture, or raise upload_mb=."
"""The way out where a request with a picture is too large."""


async def read_body(request: Request, limit: int, way_out: str = PICTURES) -> bytes:
    """The body of a request. Raises RefusedError where it has more bytes than ``limit``, as soon as that is known."""
    stated = request.headers.get("content-length", "0")
    too_large = RefusedError(413, f"The request has more than {limit / 1e6:.3g} MB. {way_out}")
    if stated.isdigit() and int(stated) > limit:
        raise too_large
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)
