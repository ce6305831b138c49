"""Files, folders and sections that the pages of the repository name exist."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "README.ko.md",
        "CONTRIBUTING.md",
        "conf/README.md",
        "tests/README.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").glob("*/README.md")),
    )
]
PLACES = (ROOT, ROOT / "panollava", ROOT / "conf", ROOT / "tests")
"""What paths in the text start from."""
WRITTEN = {line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line.endswith("/")}
"""Folders that commands write beside the repository's own, such as ``cache/``; a path in them may be an example."""
FOLDERS = {path.name for place in PLACES for path in place.iterdir() if path.is_dir()} - WRITTEN
"""First parts of a path in the repository."""


def missing_paths(text: str) -> list[str]:
    """Paths in backticks that are in none of ``PLACES``; names with placeholders are left out."""
    named = re.findall(r"`([\w./-]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    paths = [name for name in named if name.endswith(".py") or ("/" in name and name.split("/")[0] in FOLDERS)]
    return [path for path in paths if not any((place / path).exists() for place in PLACES)]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files or headings that there are not."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if "://" not in target and (not file.exists() or (anchor and anchor not in anchors(file))):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_paths_and_links_exist(page: Path) -> None:
    assert missing_paths(page.read_text(encoding="utf-8")) == []
    assert list(broken_links(page)) == []


def test_a_missing_path_and_a_broken_link_are_found(tmp_path: Path) -> None:
    text = (
        "`panollava/gone.py`, `gone.py`, `model/gone/`, [a](#gone), [b](other.md), `model/vision.py`, `data/mine.csv`"
    )
    assert missing_paths(text) == ["panollava/gone.py", "gone.py", "model/gone/"]
    (tmp_path / "page.md").write_text(f"# What is `there`\n{text} [c](#what-is-there)", encoding="utf-8")
    assert list(broken_links(tmp_path / "page.md")) == ["#gone", "other.md"]


TRAINS = """#!/bin/bash
trap 'sleep 0.2; echo "ended with $STATUS" >> log; exit $STATUS' TERM
echo begun >> log
for _ in {1..400}; do sleep 0.05; done
"""
"""Stands for a training that is told to end; it takes a while to save."""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> log
"""


@pytest.mark.parametrize("status", [130, 0], ids=["interrupted", "finished"])
@pytest.mark.parametrize("number", [0, 1], ids=["one node", "several nodes"])
def test_a_slurm_script_queues_a_run_again_that_its_limit_interrupted(tmp_path: Path, number: int, status: int) -> None:
    text = (ROOT / "conf" / "README.md").read_text(encoding="utf-8")
    script = re.findall(r"^```text\n(#!/bin/bash\n#SBATCH.*?)^```", text, re.DOTALL | re.MULTILINE)[number]
    for name, content in (("python", TRAINS), ("srun", TRAINS), ("scontrol", SCONTROL), ("job.sh", script)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a", "SLURM_NNODES": "2"}
    variables = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STATUS": str(status)}
    job, log = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=variables), tmp_path / "log"
    deadline = time.monotonic() + 20
    while not (log.is_file() and "begun" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: does
    job.wait(20)
    lines = [line for line in log.read_text().splitlines() if "hostnames" not in line]
    assert lines == ["begun", f"ended with {status}", *(["scontrol requeue 7"] if status else [])]
    assert "--requeue" in script
    assert "--signal=B:TERM@" in script
