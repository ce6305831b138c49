"""Addresses taken apart, and who may be asked: by name, by place, by config."""

from __future__ import annotations

import socket

import pytest
from omegaconf import OmegaConf
from support.picture_server import MakeFetcher, PictureServer
from support.runs import config

from panollava.data.remote.rules import Failed, Rules, parse_address
from panollava.run.sources import check_data

PRIVATE = ("10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "224.0.0.1")
PRIVATE += ("::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::")


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://example.org", "example.org", 80, "/"),
        ("HTTPS://Example.ORG./a b.jpg#x", "example.org", 443, "/a%20b.jpg"),
        ("http://example.org:8080/%EA%B0%80?q=가&r=a b", "example.org", 8080, "/%EA%B0%80?q=%EA%B0%80&r=a%20b"),
        ("https://한글.example/a.jpg", "xn--bj0bj06e.example", 443, "/a.jpg"),
        ("http://[::1]:81/a", "::1", 81, "/a"),
    ],
)
def test_addresses(text: str, host: str, port: int, target: str) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.target) == (host, port, target)
    assert "#" not in address.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://example.org/a.jpg", "ftp: pictures are fetched by http and https alone"),
        ("file:///etc/passwd", "file: pictures"),
        ("http:///a.jpg", "names no host"),
        ("http://user:secret@example.org/a.jpg", "user name or password"),
        ("http://example.org:99999/", "not an address"),
        ("http://[::1/", "not an address"),
        ("http://" + "a" * 80 + "/", "not an address"),
    ],
)
def test_what_is_no_address_of_a_picture(text: str, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        parse_address(text)


def test_hosts_are_named_with_their_subdomains() -> None:
    rules = Rules(["Example.org", "127.0.0.1:8000"])
    allowed = ["http://example.org/", "https://www.example.org/a", "http://127.0.0.1:8000/"]
    barred = ["http://badexample.org/", "http://example.org.evil.net/", "http://127.0.0.1:8001/", "http://127.0.0.1/"]
    assert all(rules.allows(parse_address(text)) for text in allowed)
    assert not any(rules.allows(parse_address(text)) for text in barred)
    assert not Rules(False).allows(parse_address(allowed[0]))
    assert Rules(True).allows(parse_address(barred[0]))


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_places_are_for_hosts_that_are_named(ip: str) -> None:
    address = parse_address("http://pictures.example.org/")
    with pytest.raises(Failed, match=r"is not a public address.*data\.remote=\[pictures\.example\.org\]"):
        Rules(True).check_ip(address, ip)
    with pytest.raises(Failed, match="is not a public address"):
        Rules(["example.org"]).check_ip(address, ip)
    Rules(["pictures.example.org"]).check_ip(address, ip)
    Rules(True).check_ip(address, "8.8.8.8")
    Rules(True).check_ip(address, "2001:4860:4860::8888")


def test_a_name_that_stands_for_a_private_place_is_not_asked(
    server: PictureServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, server.port)) for ip in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    url = f"http://rebound.example.org:{server.port}/1"
    assert "rebound.example.org is 127.0.0.1, which is not" in fetcher(remote=["example.org"]).fetch([url]).dead[url]
    assert not server.asked


def test_config() -> None:
    section = OmegaConf.to_container(config("data=csv").data)
    assert isinstance(section, dict)
    for remote in (True, False, ["live.staticflickr.com", "127.0.0.1:80"]):
        assert check_data({**section, "remote": remote}) == []
    wrong = {"remote": "maybe", "remote_tries": 0, "remote_max_mb": 0, "remote_cache": None, "remote_trys": 1}
    problems = "\n".join(check_data({**section, **wrong}))
    for key in wrong:
        assert f"data.{key}" in problems
    assert check_data({**section, "remote": []})[0].startswith("data.remote=[] allows no host: name some, or give true")
    assert "'https://x/' is not a host. Write it as live.static" in check_data({**section, "remote": ["https://x/"]})[0]
    of_the_world = check_data({"type": "world", "name": "world", "remote": True})
    assert any(problem.startswith("data.remote is not a key here") for problem in of_the_world)
