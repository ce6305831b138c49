"""The files of the page: complete, small, without other hosts, and as its build wrote them."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from support import ROOT

STATIC = ROOT / "panollava" / "server" / "static"
OWN = sorted(file for file in STATIC.iterdir() if file.is_file())
SCRIPTS = [file for file in OWN if file.suffix == ".js"]
LIMIT = 300_000


def read(name: str) -> str:
    return (STATIC / name).read_text("utf-8")


def test_the_libraries_are_the_built_files() -> None:
    versions = json.loads(read("vendor/versions.json"))
    assert set(versions["sha256"]) == {"viewer.js", "viewer.css"}
    for name, told in versions["sha256"].items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == told
    wanted = json.loads((ROOT / "experiments" / "page" / "package.json").read_text("utf-8"))["devDependencies"]
    assert {name: wanted[name] for name in versions["packages"]} == versions["packages"]
    licences = read("vendor/LICENSES.txt")
    for name, version in versions["packages"].items():
        assert f"{name} {version} (MIT)" in licences


def test_the_recipe_names_no_registry_of_its_own() -> None:
    lock = json.loads((ROOT / "experiments" / "page" / "package-lock.json").read_text("utf-8"))
    sources = [package.get("resolved", "") for package in lock["packages"].values()]
    assert [one for one in sources if one and not one.startswith("https://registry.npmjs.org/")] == []
    wanted = json.loads((ROOT / "experiments" / "page" / "package.json").read_text("utf-8"))["devDependencies"]
    assert {name: lock["packages"][f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_the_page_is_small() -> None:
    sizes = [len(gzip.compress(file.read_bytes(), 9)) for file in STATIC.rglob("*") if file.is_file()]
    assert sum(sizes) <= LIMIT


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_own_files_name_no_host(file: Path) -> None:
    assert re.findall(r"https?://|[\"'(]//\w", file.read_text("utf-8")) == []


def test_nothing_in_the_page_is_inline() -> None:
    page = read("index.html")
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page) == []
    named = re.findall(r"(?:src|href)=\"(static/[^\"]+)\"", page)
    assert len(named) == 3
    assert [name for name in named if not (STATIC.parent / name).is_file()] == []


def test_what_others_wrote_is_never_markup() -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|tooltip:|html:"
    assert [file.name for file in SCRIPTS if re.search(markup, file.read_text("utf-8"))] == []


def test_both_languages_have_the_same_texts() -> None:
    texts = json.loads(read("texts.json"))
    assert set(texts) == {"en", "ko"}
    assert list(texts["en"]) == list(texts["ko"])
    for key, english in texts["en"].items():
        korean = texts["ko"][key]
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", korean)), key
        assert english.strip()
        assert korean.strip()


def test_the_texts_in_use_are_the_texts_there_are() -> None:
    texts = set(json.loads(read("texts.json"))["en"])
    page = set(re.findall(r"data-(?:text|label)=\"([^\"]+)\"", read("index.html")))
    quoted = {word for file in SCRIPTS for word in re.findall(r"[\"'`]([\w.]+)[\"'`]", file.read_text("utf-8"))}
    assert page - texts == set()
    assert texts - page - quoted == set()
    named = {word for word in quoted if word.split(".")[0] in {key.split(".")[0] for key in texts if "." in key}}
    assert {word for word in named if "." in word and not word.endswith(".js")} - texts == set()


def test_every_element_that_scripts_name_is_there() -> None:
    there = set(re.findall(r"\sid=\"([^\"]+)\"", read("index.html")))
    named = {word for file in SCRIPTS for word in re.findall(r"\belement\(\"([^\"]+)\"\)", file.read_text("utf-8"))}
    assert named - there == set()
