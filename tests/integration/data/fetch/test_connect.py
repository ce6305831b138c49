"""Connections over TLS, and by way of a proxy."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.picture_server import MakeFetcher, PictureServer, picture, serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of 127.0.0.1, made for these tests and trusted by nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "panollava test")])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "loopback.pem"
    path.write_bytes(key.private_bytes(*plain) + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[PictureServer]:
    def speak_tls(server: PictureServer) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)

    with serving(speak_tls) as server:
        yield server


@pytest.fixture
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


def https(server: PictureServer, path: str) -> str:
    return server.url(path).replace("http:", "https:", 1)


def test_a_certificate_that_nobody_trusts_ends_it(secure: PictureServer, fetcher: MakeFetcher) -> None:
    url = https(secure, "/1")
    assert fetcher().fetch([url]).failed[url].startswith("the certificate of 127.0.0.1 is not trusted (self-signed")
    assert not secure.asked


@pytest.mark.usefixtures("_trusted")
def test_pictures_come_by_tls_and_not_from_it_to_without(
    secure: PictureServer, server: PictureServer, fetcher: MakeFetcher
) -> None:
    urls = [
        https(secure, "/1"),
        https(secure, f"/moved/{server.url('/2')}"),
        server.url(f"/moved/{https(secure, '/3')}"),
    ]
    fetched = fetcher().fetch(urls)
    assert {url: path.read_bytes() for url, path in fetched.paths.items()} == {urls[0]: picture(1), urls[2]: picture(3)}
    assert fetched.failed[urls[1]].startswith(f"it redirects from https to http: {server.url('/2')}")


class Tunnel:
    """Makes a server a proxy: it passes on what comes after CONNECT, and answers other addresses itself."""

    def __init__(self) -> None:
        self.credentials: list[str] = []

    def __call__(self, server: PictureServer) -> None:
        tunnel = self

        class Handler(server.RequestHandlerClass):  # type: ignore[name-defined, misc]
            def do_GET(self) -> None:
                tunnel.credentials.append(self.headers.get("Proxy-Authorization", ""))
                assert self.path.startswith("http://pictures.example.org/")
                self.path = self.path.removeprefix("http://pictures.example.org")
                super().do_GET()

            def do_CONNECT(self) -> None:
                tunnel.credentials.append(self.headers.get("Proxy-Authorization", ""))
                self.close_connection = True
                host, port = self.path.split(":")
                with socket.create_connection((host, int(port))) as further:
                    self.send_response(200)
                    self.end_headers()
                    ends = {self.connection: further, further: self.connection}
                    while True:
                        for end in select.select(list(ends), [], [], 5)[0]:
                            if not (data := end.recv(65536)):
                                return
                            ends[end].sendall(data)

        server.RequestHandlerClass = Handler


def test_http_by_a_proxy(fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel = Tunnel()
    with serving(tunnel) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:se%20cret@127.0.0.1:{proxy.port}")
        made = fetcher(hosts=None)
        fetched = made.fetch(["http://pictures.example.org/1", "http://10.0.0.1/2"])
    assert [path.read_bytes() for path in fetched.paths.values()] == [picture(1)]
    assert "10.0.0.1, which is not a public address" in fetched.failed["http://10.0.0.1/2"]
    assert tunnel.credentials == ["Basic bWU6c2UgY3JldA=="]


@pytest.mark.usefixtures("_trusted")
def test_https_by_a_proxy(secure: PictureServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel = Tunnel()
    with serving(tunnel) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        assert fetcher().fetch([https(secure, "/1")]).failed == {}
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
        failed = fetcher(tries=1).fetch([https(secure, "/2")]).failed
    assert tunnel.credentials == [""]
    assert next(iter(failed.values())).startswith(
        "the proxy socks5://127.0.0.1:1 of the environment is not an http one"
    )
