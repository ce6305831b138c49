"""Which addresses are asked for: by scheme, by host, by the IP address that a name stands for."""

from __future__ import annotations

import socket

import pytest
from support.picture_server import MakeFetcher, PictureServer

from panollava.data.fetch import Failed, Hosts, check_hosts
from panollava.run.sections import check_fetch

PRIVATE = ("10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "224.0.0.1")
PRIVATE += ("::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://example.org", "http://example.org/"),
        ("HTTPS://Example.ORG./a b.jpg#x", "https://example.org./a%20b.jpg"),
        ("http://example.org:8080/%EA%B0%80?q=가&r=a b", "http://example.org:8080/%EA%B0%80?q=%EA%B0%80&r=a%20b"),
        ("https://한글.example/a.jpg", "https://xn--bj0bj06e.example/a.jpg"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert Hosts(None).check(text) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://example.org/a.jpg", "ftp: pictures are fetched by http and https alone"),
        ("file:///etc/passwd", "file: pictures"),
        ("http:///a.jpg", "not an address .*No host"),
        ("http://user:secret@example.org/a.jpg", "user name or password"),
        ("http://example.org:99999/", "not an address"),
        ("http://[::1/", "not an address"),
    ],
)
def test_what_is_no_address_of_a_picture(text: str, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        Hosts(None).check(text)


def test_hosts_are_named_with_their_subdomains() -> None:
    hosts = Hosts(["Example.org", "127.0.0.1:8000"])
    for text in ("http://example.org/", "https://www.example.org/a", "http://EXAMPLE.org./", "http://127.0.0.1:8000/"):
        hosts.check(text)
    barred = ("http://badexample.org/", "http://example.org.evil.net/", "http://127.0.0.1:8001/", "http://127.0.0.1/")
    for text in barred:
        with pytest.raises(Failed, match=r"is not among the hosts of fetch\.hosts=\[example\.org,127"):
            hosts.check(text)
    Hosts(None).check(barred[0])


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_places_are_for_hosts_that_are_named(ip: str) -> None:
    host = "pictures.example.org"
    with pytest.raises(Failed, match=r"is not a public address.*fetch\.hosts=\[pictures\.example\.org\]"):
        Hosts(None).check_ip(host, 80, ip)
    with pytest.raises(Failed, match="is not a public address"):
        Hosts(["example.org"]).check_ip(host, 80, ip)
    Hosts([host]).check_ip(host, 80, ip)
    Hosts(None).check_ip(host, 80, "8.8.8.8")
    Hosts(None).check_ip(host, 80, "2001:4860:4860::8888")


@pytest.mark.parametrize("text", ["http://127.0.0.1/a", "http://[::1]:81/a", "http://[::ffff:10.0.0.1]/"])
def test_a_private_number_is_refused_before_anything_is_connected_to(text: str) -> None:
    with pytest.raises(Failed, match="is not a public address"):
        Hosts(None).check(text)


def test_a_name_that_stands_for_a_private_place_is_not_asked(
    server: PictureServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, server.port)) for ip in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    url = f"http://rebound.example.org:{server.port}/1"
    assert "rebound.example.org is 127.0.0.1, which is not" in fetcher(hosts=["example.org"]).fetch([url]).failed[url]
    assert not server.asked


def test_another_place_of_a_host_is_tried(
    server: PictureServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, server.port)) for ip in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    url = f"http://near.example.org:{server.port}/1"
    assert url in fetcher(hosts=["near.example.org"]).fetch([url]).paths


@pytest.mark.parametrize("name", ["nowhere.invalid", "a" * 80])
def test_a_host_that_is_not_known(fetcher: MakeFetcher, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        name.encode("idna")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    fetched = fetcher(hosts=None, tries=2).fetch([f"http://{name}/a.jpg"])
    assert list(fetched.failed.values()) == [f"the host {name} is not known, 2 times"]


def test_config() -> None:
    section = {"folder": "cache", "hosts": None, "timeout_s": 20.0, "tries": 4, "max_mb": 100.0, "connections": 8}
    for hosts in (None, ["live.staticflickr.com", "127.0.0.1:80"]):
        assert check_fetch({**section, "hosts": hosts}) == []
    wrong = {"hosts": "maybe", "tries": 0, "max_mb": 0, "folder": None, "trys": 1}
    problems = "\n".join(check_fetch({**section, **wrong}))
    for key in wrong:
        assert f"fetch.{key}" in problems
    assert check_hosts([])[0].startswith("fetch.hosts=[] allows no host: name some, or give null")
    assert "'https://x/' is not a host. Write it as live.static" in check_hosts(["https://x/"])[0]
