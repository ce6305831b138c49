"""Takes a screenshot of MLflow's list of runs: a sweep's parent run with its jobs below it.

python experiments/pictures/mlflow_page.py <folder with mlflow.db> <picture.png> [--browser PATH] [--port N]

Uses the DevTools protocol through the browser's pipe, so it needs Linux or macOS and a Chromium.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

COLUMNS = {
    "attributes.`Run Name`": 330,
    "runDateAndNestInfo": 150,
    "duration": 80,
    "params.`model.resampler.type`": 175,
    "params.`crop.overlap`": 110,
    "metrics.`test/exact_match`": 145,
    "metrics.`test/blank`": 100,
    "metrics.`finetune/val_loss`": 145,
}
"""The table's columns by MLflow's names, and their widths in pixels."""

ASIDE = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
"""Browser storage that keeps MLflow's assistant panel shut."""

ROWS = "document.querySelectorAll('.ag-center-cols-container .ag-row').length"
OPEN_PARENTS = "document.querySelectorAll('.ag-row button[data-component-id*=runnamecell]').forEach(b => b.click())"
CLEAR = """
for (const button of ["Hide banner", "Toggle sidebar"])
  document.querySelector(`[aria-label="${button}"]`)?.click();
document.head.insertAdjacentHTML("beforeend", "<style>[data-assistant-ui] {display: none}</style>")
"""
"""Puts aside what is no part of the list: a banner, the sidebar, the assistant's button."""


def main() -> None:
    """Copies the store, shows it, waits until every run stands in the list, and keeps the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sweep was started")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None))
    parser.add_argument("--port", type=int, default=5123)
    parser.add_argument("--experiment", default="panollava")
    options = parser.parse_args()
    if options.browser is None:
        sys.exit("There is no chromium or google-chrome on the PATH: name one with --browser.")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        experiment, parents, runs = copy_store(
            options.folder / "mlflow.db", Path(scratch) / "mlflow.db", options.experiment
        )
        address = stack.enter_context(server(Path(scratch), options.port))
        page = stack.enter_context(browser(options.browser, Path(scratch) / "profile", (1440, 400 + 32 * runs)))
        page("Page.enable")
        page("Page.addScriptToEvaluateOnNewDocument", source=f"Object.assign(localStorage, {json.dumps(ASIDE)})")
        view = f"{address}/#/experiments/{experiment}/runs?viewStateShareKey=picture&workflowType=machine_learning"
        page("Page.navigate", url=view)
        wait("the list of runs", lambda: evaluate(page, ROWS) == parents)
        evaluate(page, OPEN_PARENTS)
        evaluate(page, CLEAR)
        wait("the jobs below their parent", lambda: evaluate(page, ROWS) == runs)
        time.sleep(2)  # icons and fonts
        picture = page("Page.captureScreenshot", format="png")["data"]
    options.picture.write_bytes(base64.b64decode(picture))


def copy_store(source: Path, target: Path, experiment: str) -> tuple[str, int, int]:
    """Copies the store and writes the view into the copy, as MLflow's own "share view" does.

    Returns:
        The experiment's id, its runs without a parent, and all its runs.
    """
    uri = f"file:{source.resolve().as_posix()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        (key,) = new.execute("SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)).fetchone()
        active = "FROM runs WHERE experiment_id = ? AND lifecycle_stage = 'active'"
        child = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId')"
        (runs,) = new.execute(f"SELECT count(*) {active}", (key,)).fetchone()
        (children,) = new.execute(f"SELECT count(*) {active} AND {child}", (key,)).fetchone()
        view = {
            "orderByKey": "attributes.start_time",
            "orderByAsc": True,
            "selectedColumns": [name for name in COLUMNS if name.startswith(("params.", "metrics."))],
            "columnOrder": list(COLUMNS),
            "columnWidths": COLUMNS,
        }
        row = ("mlflow.sharedViewState.picture", json.dumps(view), key)
        new.execute("INSERT OR REPLACE INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)", row)
        new.commit()
    return str(key), runs - children, runs


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """``mlflow ui`` on the store in ``folder``; yields its address."""
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with process(command, cwd=folder, env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as running:
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            if running.poll() is not None:
                sys.exit(f"mlflow ui ended with {running.returncode}: is port {port} free?")
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        wait("mlflow ui", answers)
        yield address


@contextmanager
def browser(path: str, profile: Path, size: tuple[int, int]) -> Iterator[Callable[..., Any]]:
    """A headless Chromium with one empty page; yields a function that sends it a DevTools command."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
    flags += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--force-device-scale-factor=1.25"]
    (commands_out, commands_in), (answers_out, answers_in) = os.pipe(), os.pipe()

    def connect() -> None:  # the browser reads commands from descriptor 3 and answers on 4
        ends = os.dup(commands_out), os.dup(answers_in)
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    options: dict[str, Any] = {"preexec_fn": connect, "close_fds": False, "stderr": subprocess.DEVNULL}
    with process([path, *flags], **options), open(commands_in, "wb", 0) as pipe, open(answers_out, "rb", 0) as replies:
        os.close(commands_out)
        os.close(answers_in)
        numbers, unread = itertools.count(1), bytearray()
        session: dict[str, str] = {}

        def command(method: str, **parameters: Any) -> Any:
            number = next(numbers)
            pipe.write(json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0")
            while True:
                while b"\0" not in unread:
                    unread.extend(replies.read(1 << 16) or sys.exit(f"{path} ended; run it by hand to see why."))
                reply = json.loads(unread[: unread.index(b"\0")])
                del unread[: unread.index(b"\0") + 1]
                if reply.get("id") == number:
                    return reply["result"] if "result" in reply else sys.exit(f"{method}: {reply['error']}")

        target = command("Target.createTarget", url="about:blank")["targetId"]
        session["sessionId"] = command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        yield command


def evaluate(page: Callable[..., Any], expression: str) -> Any:
    """Value of a JavaScript expression in the page."""
    return page("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, which ends with the block together with what it started."""
    started = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        started.wait(timeout=30)


def wait(what: str, ready: Callable[[], bool], seconds: float = 120.0) -> None:
    """Returns when ``ready()`` is true; gives up after a while."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"Waited {seconds:.0f} s for {what} in vain.")
        time.sleep(0.3)


if __name__ == "__main__":
    main()
