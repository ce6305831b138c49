"""Pictures at http(s) addresses, downloaded once: allowed hosts, the download itself, and the manifest.

::

    <folder>/manifest.jsonl          address, file, sha256, size, time, status; the last line of an address counts
    <folder>/pictures/<sha256>.jpg   a complete picture, named by the hash of its bytes
"""

import hashlib
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Event
from typing import Annotated, Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
from annotated_types import Interval
from filelock import FileLock
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from tqdm import tqdm
from urllib3.exceptions import HTTPError, IncompleteRead
from urllib3.util import parse_url

from panollava.crop.image_file import parse_header
from panollava.logs import LOG

MANIFEST, PICTURES = "manifest.jsonl", "pictures"
PATIENCE = 15
"""A download takes at most so many times ``timeout_s``, as a server may send a byte now and then."""
MOST_REDIRECTS = 5

_FETCHED = "fetched"
_FILE = re.compile(rf"{PICTURES}/[0-9a-f]{{64}}\.(jpg|png)")
_HOST = re.compile(r"[^\s/?#@]+")
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
"""Status codes of temporary failures."""
_NO_TYPE = {"", "application/octet-stream", "binary/octet-stream"}
"""Content types of servers that do not know that of a file."""
_HEADERS = {
    "User-Agent": "panollava",
    "Accept": "image/jpeg, image/png",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
_BLOCK = 65_536
_LONGEST_PAUSE_S = 60.0
_LONGEST_WAIT_S = 120.0
_LOG_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Keys of the section ``fetch``.

    Attributes:
        folder: of the pictures and the manifest.
        hosts: allowed hosts, with their subdomains; None allows every public host. A host that is named itself may
            also be in a private network.
        timeout_s: longest silence of a server.
        tries: attempts per picture while failures are temporary.
        max_mb: larger files are refused.
        connections: pictures fetched at the same time.
    """

    folder: str = "cache/fetched"
    hosts: list[str] | None = None
    timeout_s: Annotated[float, Interval(gt=0.0, le=600.0)] = 20.0
    tries: Annotated[int, Interval(ge=1, le=20)] = 4
    max_mb: Annotated[float, Interval(gt=0.0, le=4096.0)] = 100.0
    connections: Annotated[int, Interval(ge=1, le=64)] = 8


@dataclass
class Fetched:
    """Files of pictures, and reasons why others failed, by address."""

    paths: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Failed(Exception):
    """A picture could not be fetched.

    Args:
        reason: in words.
        temporary: whether another attempt may succeed.
        wait_s: pause that the server requests before it.
    """

    def __init__(self, reason: str, *, temporary: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.temporary = temporary
        self.wait_s = wait_s


def check_hosts(hosts: object) -> list[str]:
    """Problems of ``fetch.hosts`` that its type does not show."""
    if not isinstance(hosts, list):
        return []
    if not hosts:
        return ["fetch.hosts=[] allows no host: name some, or give null for every public one."]
    return [
        f"fetch.hosts: {host!r} is not a host. Write it as live.staticflickr.com, without http:// and path."
        for host in hosts
        if not _HOST.fullmatch(str(host))
    ]


def fetch_panorama(address: str, options: FetchOptions) -> Path:
    """File of the picture at an address, which is fetched unless it was before.

    Raises:
        ValueError: no picture came, or its host is not allowed.
        OSError: the folder of the pictures cannot be written.
    """
    fetched = Fetcher(options).fetch([address])
    if address not in fetched.paths:
        raise ValueError(f"image={address}: {fetched.failed[address]}.")
    return fetched.paths[address]


class Hosts:
    """The allowed hosts, see ``FetchOptions.hosts``.

    A host that is not named itself is connected to only at public IP addresses: a data file from elsewhere must not
    reach into the network of its reader.
    """

    def __init__(self, named: Iterable[str] | None) -> None:
        self._named = None if named is None else [str(host).lower() for host in named]

    def check(self, address: str) -> str:
        """An address for a request, percent-encoded and with its host in ASCII.

        Raises:
            Failed: it is not an http(s) address, or its host is not allowed.
        """
        try:
            scheme = urlsplit(address).scheme
            if scheme not in ("http", "https"):
                raise Failed(f"{scheme or 'no scheme'}: pictures are fetched by http and https alone")
            url = requests.Request("GET", address.partition("#")[0]).prepare().url or ""
        except (ValueError, requests.RequestException) as error:
            raise Failed(f"not an address ({error})") from None
        parts = parse_url(url)
        if parts.auth is not None:
            raise Failed("an address with a user name or password, which would be written into the manifest")
        host, port = (parts.host or "").strip("[]").rstrip("."), parts.port or (443 if scheme == "https" else 80)
        is_below = any(host.endswith(f".{name}") for name in self._named or ())
        if self._named is not None and not (is_below or self._is_named(host, port)):
            raise Failed(f"{host} is not among the hosts of fetch.hosts=[{','.join(self._named)}]")
        try:
            ipaddress.ip_address(host)
        except ValueError:  # a name, which is looked up where the connection is made
            return url
        self.check_ip(host, port, host)
        return url

    def check_ip(self, host: str, port: int, ip: str) -> None:
        """Refuses an IP address of a host that is not named if it is not public."""
        place = ipaddress.ip_address(ip.partition("%")[0])
        place = getattr(place, "ipv4_mapped", None) or place
        if not self._is_named(host, port) and (not place.is_global or place.is_multicast):
            raise Failed(
                f"{host} is {ip}, which is not a public address. If it is meant, name the host: fetch.hosts=[{host}]"
            )

    def connect(self, host: str, port: int, timeout_s: float | None) -> socket.socket:
        """A connection to a host at an IP address that was checked.

        The name is looked up once: in a second look-up, its owner could give another address than the checked one.

        Raises:
            Failed: it is not allowed, or cannot be reached.
        """
        try:
            places = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (socket.gaierror, UnicodeError):
            raise Failed(f"the host {host} is not known", temporary=True) from None
        for ip in places:
            self.check_ip(host, port, ip)
        for left, ip in enumerate(places, start=1 - len(places)):
            try:
                return socket.create_connection((ip, port), timeout_s)
            except OSError as error:
                if not left:
                    raise _reason(error, host, timeout_s) from error
        raise Failed(f"the host {host} is not known", temporary=True)

    def _is_named(self, host: str, port: int) -> bool:
        return self._named is not None and (host in self._named or f"{host}:{port}" in self._named)


class _Adapter(HTTPAdapter):
    """Connects through ``Hosts``, anew for each request; behind a proxy the proxy looks names up.

    The authorities that the machine trusts count beside those that come with ``requests``.
    """

    def __init__(self, hosts: Hosts, connections: int) -> None:
        self._hosts = hosts
        super().__init__(pool_maxsize=connections)

    def init_poolmanager(self, *sizes: Any, **options: Any) -> None:
        super().init_poolmanager(*sizes, ssl_context=ssl.create_default_context(), **options)
        hosts = self._hosts

        def connect(connection: Any) -> socket.socket:
            return hosts.connect(connection.host, connection.port, connection.timeout)

        _specialise(self.poolmanager, _new_conn=connect)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, ssl_context=ssl.create_default_context(), **options)
        if is_new:
            _specialise(manager)
        return manager


def _specialise(manager: Any, **methods: Any) -> None:
    """Gives the connections of a pool manager other methods, as urllib3 itself does for SOCKS, and reuses none.

    We send ``Connection: close``, but a server may close without announcing it. A pool would take the connection
    again if that end has not arrived yet, and the next request, such as that of a redirect, would get no response.
    """

    def discard(pool: Any, connection: Any) -> None:  # noqa: ARG001
        if connection is not None:
            connection.close()

    def specialised(pool: Any) -> Any:
        line = type("Line", (pool.ConnectionCls,), methods)
        return type("Pool", (pool,), {"ConnectionCls": line, "_put_conn": discard})

    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: specialised(pool) for scheme, pool in pools.items()}


class Fetcher:
    """Fetches pictures into a folder; a lock serializes several processes.

    Args:
        options: hosts, limits and folder.
        pause_s: before the second attempt; it doubles with each one.
    """

    def __init__(self, options: FetchOptions, *, pause_s: float = 1.0) -> None:
        self.options = options
        self.folder = Path(options.folder).expanduser()
        self._hosts = Hosts(options.hosts)
        self._pause_s = pause_s
        self._stop = Event()
        self._session = requests.Session()
        self._session.trust_env = False  # proxies are read below; passwords of ~/.netrc must not be sent
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self._hosts, options.connections))

    def fetch(self, addresses: Iterable[str]) -> Fetched:
        """The pictures at some addresses; complete files that the manifest names are not fetched again.

        Raises:
            OSError: the folder cannot be written.
        """
        try:
            (self.folder / PICTURES).mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                return self._fetch(list(dict.fromkeys(addresses)))
        except OSError as error:
            raise OSError(
                f"fetch.folder={self.folder} cannot be written ({error.strerror or error}). Make room, or name another "
                "folder."
            ) from error

    def _fetch(self, addresses: list[str]) -> Fetched:
        for leftover in (self.folder / PICTURES).glob(".tmp-*"):  # of a process that was killed
            leftover.unlink()
        known, result = self._known(), Fetched()
        result.paths = {address: known[address] for address in addresses if address in known}
        missing = [address for address in addresses if address not in known]
        if not missing:
            return result
        LOG.info("Fetching %d pictures into %s, %d at a time.", len(missing), self.folder, self.options.connections)
        began = logged = time.monotonic()
        pool = ThreadPoolExecutor(self.options.connections, thread_name_prefix="fetch")
        try:
            jobs = {pool.submit(self._fetch_one, address): address for address in missing}
            with (
                (self.folder / MANIFEST).open("a", encoding="utf-8") as manifest,
                tqdm(total=len(missing), desc="pictures", unit="picture", disable=None, leave=False) as bar,
            ):
                for done, job in enumerate(as_completed(jobs), start=1):
                    entry = {"address": jobs[job], **job.result(), "time": round(time.time(), 3)}
                    manifest.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    manifest.flush()
                    if entry["status"] == _FETCHED:
                        result.paths[jobs[job]] = self.folder / entry["file"]
                    else:
                        result.failed[jobs[job]] = entry["status"]
                    bar.update()
                    if bar.disable and time.monotonic() - logged >= _LOG_EVERY_S:
                        logged = time.monotonic()
                        LOG.info("%d of %d pictures, %d failed.", done, len(missing), len(result.failed))
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()
        came = len(missing) - len(result.failed)
        LOG.info("%d of %d pictures were fetched in %.0f s.", came, len(missing), time.monotonic() - began)
        return result

    def _known(self) -> dict[str, Path]:
        """The pictures in the manifest whose files have the recorded size."""
        try:
            text = (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return {}
        os.truncate(self.folder / MANIFEST, text.rfind(b"\n") + 1)  # a killed process may have left half a line
        entries: dict[str, Mapping[str, Any]] = {}
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                # The full match of the name keeps a manifest from naming files outside the folder.
                if entry["status"] == _FETCHED and _FILE.fullmatch(entry["file"]):
                    entries[str(entry["address"])] = entry
            except (ValueError, KeyError, TypeError):  # a damaged line: its picture is fetched again
                continue
        paths = {address: self.folder / entry["file"] for address, entry in entries.items()}
        return {
            address: path
            for address, path in paths.items()
            if path.is_file() and path.stat().st_size == entries[address].get("size")
        }

    def _fetch_one(self, address: str) -> dict[str, Any]:
        """Fields of an address's line in the manifest."""
        for attempt in range(1, self.options.tries + 1):
            try:
                return {**self._keep(address), "status": _FETCHED}
            except Failed as failure:
                if not failure.temporary or attempt == self.options.tries or self._stop.is_set():
                    return {"status": f"{failure}, {attempt} times" if attempt > 1 else str(failure)}
                pause = min(self._pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
                # Random, so that the requests do not return all at once.
                self._stop.wait(max(failure.wait_s, pause * random.uniform(0.5, 1.5)))
        raise AssertionError("unreachable")

    def _keep(self, address: str) -> dict[str, Any]:
        """Downloads a picture to a temporary file, and renames it when complete."""
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=self.folder / PICTURES)
        try:
            with os.fdopen(handle, "w+b") as file:
                sha256, size = self._download(address, file)
                header = parse_header(file)
                file.flush()
                os.fsync(file.fileno())
            if header is None:
                raise Failed("the server sends neither a JPEG nor a PNG picture, against its Content-Type")
            if not header.is_complete:
                raise Failed(f"the {header.format} is cut short: its end is missing", temporary=True)
            kept = f"{PICTURES}/{sha256}{'.jpg' if header.format == 'JPEG' else '.png'}"
            os.chmod(name, 0o644)
            os.replace(name, self.folder / kept)
        finally:
            Path(name).unlink(missing_ok=True)
        return {"file": kept, "sha256": sha256, "size": size}

    def _download(self, address: str, into: BinaryIO) -> tuple[str, int]:
        """SHA-256 and size of the content of an address; each redirect is checked like the address itself."""
        deadline = time.monotonic() + PATIENCE * self.options.timeout_s
        url = self._hosts.check(address)
        for _ in range(MOST_REDIRECTS + 1):
            proxies = get_environ_proxies(url)
            if (proxy := select_proxy(url, proxies)) and urlsplit(proxy).scheme not in ("", "http", "https"):
                raise Failed(f"the proxy {proxy.rpartition('@')[2]} of the environment is not an http one")
            with self._network(url):
                response = self._session.get(
                    url, headers=_HEADERS, timeout=self.options.timeout_s,
                    proxies=proxies, stream=True, allow_redirects=False,
                )  # fmt: skip
            with closing(response):
                if not response.is_redirect:
                    return self._receive(response, into, deadline)
                url = self._next(url, response.headers["Location"])
        raise Failed(f"more than {MOST_REDIRECTS} redirects")

    def _next(self, url: str, location: str) -> str:
        try:
            following = self._hosts.check(urljoin(url, location))
        except (Failed, ValueError) as error:
            raise Failed(f"it redirects to {location!r}: {error}") from None
        if (urlsplit(url).scheme, urlsplit(following).scheme) == ("https", "http"):
            raise Failed(f"it redirects from https to http: {following}")
        return following

    def _receive(self, response: requests.Response, into: BinaryIO, deadline: float) -> tuple[str, int]:
        announced, most = _announced(response), int(self.options.max_mb * 1e6)
        if announced > most:
            raise Failed(f"{announced / 1e6:.1f} MB; fetch.max_mb={self.options.max_mb:g} is the limit")
        digest, size = hashlib.sha256(), 0
        while True:
            with self._network(response.url):
                # `read1` returns what has arrived, not a whole block, so that a slow server is noticed.
                part = response.raw.read1(_BLOCK, decode_content=False)
            size += len(part)
            if self._stop.is_set():
                raise Failed("stopped")
            if time.monotonic() > deadline:
                raise Failed(f"not complete after {PATIENCE * self.options.timeout_s:g} s", temporary=True)
            if size > most:
                raise Failed(f"more than {most / 1e6:g} MB; fetch.max_mb={self.options.max_mb:g} is the limit")
            if not part:
                break
            digest.update(part)
            into.write(part)
        return digest.hexdigest(), size

    @contextmanager
    def _network(self, url: str) -> Iterator[None]:
        """Converts errors of the network; no file is accessed inside."""
        try:
            yield
        except (OSError, HTTPError) as error:  # requests' errors are OSErrors
            raise _reason(error, str(urlsplit(url).hostname), self.options.timeout_s) from error


def _announced(response: requests.Response) -> int:
    """Content length of a response, 0 if it has none; refuses a response that is not a picture."""
    if response.status_code != 200:
        wait = response.headers.get("Retry-After", "")  # a date is rare; the usual pause is used then
        raise Failed(
            f"HTTP {response.status_code} {response.reason}".strip(),
            temporary=response.status_code in _TEMPORARY,
            wait_s=min(float(wait), _LONGEST_WAIT_S) if wait.isdecimal() else 0.0,
        )
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in _NO_TYPE:
        raise Failed(f"the server sends {kind}, not a picture")
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise Failed(f"the server sends it {coding}-coded, which was not requested")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else 0


def _reason(error: BaseException, host: str, timeout_s: float | None) -> Failed:
    """The reason of a network error, from the chain of its causes."""
    causes, todo = [], [error]
    while todo:
        causes.append(todo.pop())
        further = (*causes[-1].args, causes[-1].__cause__, causes[-1].__context__)
        todo += [each for each in further if isinstance(each, BaseException) and each not in causes]
    if any(isinstance(each, TimeoutError | requests.Timeout) for each in causes):
        return Failed(f"the server was silent for {timeout_s:g} s", temporary=True)
    for each in causes:
        if isinstance(each, ssl.SSLCertVerificationError):
            return Failed(f"the certificate of {host} is not trusted ({each.verify_message})")
        if isinstance(each, IncompleteRead):
            return Failed(
                f"it broke off after {each.partial:,} of {each.partial + each.expected:,} bytes", temporary=True
            )
    roots = [each for each in causes if isinstance(each, OSError | HTTPException)]
    root = next((each for each in roots if not isinstance(each, requests.RequestException)), error)
    return Failed(f"the connection broke ({type(root).__name__}: {root})", temporary=True)
