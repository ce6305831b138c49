"""Which addresses pictures may be fetched from, and in which words others are refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, urlsplit

from annotated_types import Interval

_HOST = re.compile(r"[^\s/?#@]+")


class Failed(Exception):
    """A picture that could not be fetched, with the reason as its text.

    Attributes:
        passing: whether another try may go better.
        wait_s: how long the server asks to be left alone before it.
        option: the key of ``data`` whose value is the reason; with another it may come.
    """

    def __init__(self, reason: str, *, passing: bool = False, wait_s: float = 0.0, option: str = "") -> None:
        super().__init__(reason)
        self.passing = passing
        self.wait_s = wait_s
        self.option = option


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """Keys of ``data`` for pictures that are named by http(s) addresses.

    Attributes:
        remote: False fetches nothing; True from every public host; a list from these hosts and their subdomains.
        remote_cache: folder that keeps the pictures and their manifest.
        remote_timeout_s: longest silence of a server; a picture takes at most ``transfer.PATIENCE`` times as long.
        remote_tries: how often a picture is asked for before its link counts as dead.
        remote_max_mb: a larger file is no picture that is wanted.
        remote_connections: pictures fetched at the same time.
        remote_retry_dead: with ``data.on_error=skip``, ask again for links that were dead in an earlier run.
    """

    remote: bool | list[str] = False
    remote_cache: str = "cache/pictures"
    remote_timeout_s: Annotated[float, Interval(gt=0.0, le=600.0)] = 20.0
    remote_tries: Annotated[int, Interval(ge=1, le=20)] = 4
    remote_max_mb: Annotated[float, Interval(gt=0.0, le=4096.0)] = 100.0
    remote_connections: Annotated[int, Interval(ge=1, le=64)] = 8
    remote_retry_dead: bool = False


@dataclass(frozen=True)
class Address:
    """An http(s) address, taken apart.

    Attributes:
        text: as it was written, without its fragment.
        scheme: ``http`` or ``https``.
        host: in ASCII, without brackets.
        port: that of the scheme where none is named.
        target: path and query, percent-encoded.
    """

    text: str
    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """Host, and port where it is not the usual one, as a request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


def parse_address(text: str) -> Address:
    """An address taken apart.

    Raises:
        Failed: it is not one that pictures are fetched from.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
        host = (parts.hostname or "").rstrip(".").encode("idna").decode()
    except ValueError as error:  # of ports, brackets and names that no host can have
        raise Failed(f"not an address ({error})") from None
    if parts.scheme not in _PORTS:
        raise Failed(f"{parts.scheme or 'no scheme'}: pictures are fetched by http and https alone")
    if not host or any(sign.isspace() for sign in host):
        raise Failed("the address names no host")
    if parts.username is not None or parts.password is not None:
        raise Failed("an address with a user name or password, which would be written into the manifest")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?[]')}" if parts.query else ""
    )
    return Address(text.partition("#")[0], parts.scheme, host, port or _PORTS[parts.scheme], target)


class Rules:
    """Which hosts may be asked.

    Hosts that are named may be anywhere. Where every host is allowed, and of the subdomains of those named, only
    public ones are asked: an address in a data file must not reach into the network of whoever reads it.

    Args:
        remote: see `RemoteOptions`.
    """

    def __init__(self, remote: bool | Sequence[str]) -> None:
        self._everywhere = remote is True
        self._hosts = [] if isinstance(remote, bool) else [host.lower() for host in remote]

    def allows(self, address: Address) -> bool:
        """Whether a host may be asked, by its name."""
        is_below = any(address.host.endswith(f".{host}") for host in self._hosts)
        return self._everywhere or is_below or self._is_named(address)

    def check(self, address: Address) -> None:
        """The same, with words for a redirect.

        Raises:
            Failed: it may not.
        """
        if not self.allows(address):
            hosts = f"data.remote={self._hosts}".replace("'", "")
            raise Failed(f"{address.host} is not among the hosts of {hosts}", option="remote")

    def check_ip(self, address: Address, ip: str) -> None:
        """Whether a host may be asked at the place that its name stands for.

        Raises:
            Failed: it lies in a private network and was not named.
        """
        if not self._is_named(address) and not _is_public(ip):
            raise Failed(
                f"{address.host} is {ip}, which is not a public address. If it is meant, name the host: "
                f"data.remote=[{address.host}]",
                option="remote",
            )

    def _is_named(self, address: Address) -> bool:
        return address.host in self._hosts or f"{address.host}:{address.port}" in self._hosts


def check_hosts(remote: object) -> list[str]:
    """Problems of ``data.remote`` that its type does not show."""
    if not isinstance(remote, list):
        return []
    if not remote:
        return ["data.remote=[] allows no host: name some, or give true for all public ones and false for none."]
    return [
        f"data.remote: {host!r} is not a host. Write it as live.staticflickr.com, without http:// and path."
        for host in remote
        if not _HOST.fullmatch(str(host))
    ]


def _is_public(ip: str) -> bool:
    place = ipaddress.ip_address(ip.partition("%")[0])
    mapped = getattr(place, "ipv4_mapped", None) or place
    return mapped.is_global and not mapped.is_multicast
