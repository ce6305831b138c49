"""Connections to hosts that are allowed: looked up once, checked, and reached at the very place that was checked."""

from __future__ import annotations

import base64
import socket
import ssl
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi

from panollava.data.remote.rules import Address, Failed, Rules


@dataclass(frozen=True)
class Line:
    """A connection on which a picture can be asked for.

    Attributes:
        connection: closes the socket with it.
        sock: what it talks through.
        target: what to ask for on it.
        headers: what the proxy wants with the question.
    """

    connection: HTTPConnection
    sock: socket.socket
    target: str
    headers: dict[str, str] = field(default_factory=dict)


def connect(address: Address, rules: Rules, timeout_s: float) -> Line:
    """Reaches a host.

    Looking a name up twice, once to check it and once to connect, would let its owner answer differently each time.
    Behind a proxy (the usual environment variables) it is the proxy that looks up; only numbers can be checked then.

    Args:
        address: its host was checked by name.
        rules: check its place.
        timeout_s: for every wait.

    Raises:
        Failed: the place is not allowed.
        OSError: it cannot be reached.
    """
    proxy = _proxy(address)
    target, headers = address.target, {}
    if proxy is None:
        sock = _reach(address, rules, timeout_s)
    else:
        _check_number(address, rules)
        sock = _reach_proxy(proxy, address, timeout_s)
        if address.scheme == "http":
            target, headers = f"http://{address.host_header}{target}", _credentials(proxy)
    try:
        if address.scheme == "https":
            sock = trust().wrap_socket(sock, server_hostname=address.host)
    except BaseException:
        sock.close()
        raise
    connection = HTTPConnection(address.host, address.port, timeout=timeout_s)
    connection.sock = sock
    return Line(connection, sock, target, headers)


def _reach(address: Address, rules: Rules, timeout_s: float) -> socket.socket:
    places = [str(found[4][0]) for found in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)]
    for place in places:
        rules.check_ip(address, place)
    for place in places[:-1]:
        try:
            return socket.create_connection((place, address.port), timeout_s)
        except OSError:  # a host has several places so that another may answer
            continue
    return socket.create_connection((places[-1], address.port), timeout_s)


def _check_number(address: Address, rules: Rules) -> None:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in address.host else socket.AF_INET, address.host)
    except OSError:
        return
    rules.check_ip(address, address.host)


def _proxy(address: Address) -> SplitResult | None:
    found = getproxies().get(address.scheme)
    if not found or proxy_bypass(f"{address.host}:{address.port}"):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


def _reach_proxy(proxy: SplitResult, address: Address, timeout_s: float) -> socket.socket:
    if proxy.scheme != "http" or proxy.hostname is None:
        raise Failed(f"the proxy {proxy.scheme}://{proxy.hostname} of the environment is not an http one")
    connection = HTTPConnection(proxy.hostname, proxy.port or 80, timeout=timeout_s)
    if address.scheme == "https":
        connection.set_tunnel(address.host, address.port, headers=_credentials(proxy))
    connection.connect()
    return connection.sock


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


@cache
def trust() -> ssl.SSLContext:
    """The authorities that the machine trusts, and the public ones: some Pythons come without the former."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
