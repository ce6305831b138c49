"""A server that comes and goes: nothing is lost, nothing is doubled, nobody waits for it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from panollava.tracking import operations, outbox, store
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.outbox import OUTBOX, Delivery, Outbox, deliver
from panollava.tracking.runs import end_parent, start_parent
from panollava.tracking.store import PID_TAG, experiment_id
from panollava.tracking.tracker import ModelLoss

URI = "http://127.0.0.1:1"
HEADER = {"uri": URI, "experiment": "e", "run_id": "r", "local_id": None, "reached": {}}


class Lister:
    """A store that lists every metric it is sent, also those it has; each request may be lost before or after."""

    def __init__(self, fates: list[str]) -> None:
        self.fates = fates
        self.metrics: list[Metric] = []

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        fate = self.fates.pop() if self.fates else "arrives"
        if fate == "is lost":
            raise MlflowException("API request failed")
        self.metrics += metrics
        if fate == "arrives, its answer is lost":
            raise MlflowException("API request failed with timeout")

    def get_run(self, run_id: str) -> None:
        raise MlflowException(f"no run {run_id}", RESOURCE_DOES_NOT_EXIST)

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [Metric(m.key, min(m.value, 1.8e308), m.timestamp, m.step) for m in self.metrics if m.key == key]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a test's length, and a server of which nobody can say whether it is there."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LAST_PAUSE_S"):
        monkeypatch.setattr(outbox, name, 0.001)
    monkeypatch.setattr(store, "answers", lambda _uri: False)


ROWS = st.tuples(st.sampled_from(["loss", "lr"]), st.floats(), st.integers(0, 3), st.integers(0, 3))
FATES = st.sampled_from(["arrives", "is lost", "arrives, its answer is lost"])


@given(batches=st.lists(st.lists(ROWS, min_size=1, max_size=4), max_size=6), fates=st.lists(FATES, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_metric_arrives_once_whatever_is_lost(tmp_path_factory, monkeypatch, brief, batches, fates) -> None:
    # Rows are what a run may log: no two of a key, step and time.
    rows = {(key, step, time_ms): value for batch in batches for key, value, time_ms, step in batch}
    lister = Lister(fates)
    monkeypatch.setattr(store, "open_client", lambda _uri: lister)
    folder = tmp_path_factory.mktemp("run")
    box = Outbox.create(folder, HEADER)
    sender = Delivery(URI, [box])
    for number, ((key, step, time_ms), value) in enumerate(rows.items()):
        box.put({"do": "metrics", "rows": [[key, value, time_ms, step]]})
        if number == 1:
            sender.start()
    if len(rows) < 2:
        sender.start()
    left = sender.finish()
    while left:  # the run ended before everything had arrived: a command sends the rest
        before, left = deliver(folder)
        assert before >= left
    got = Counter((m.key, m.step, m.timestamp, None if math.isnan(m.value) else m.value) for m in lister.metrics)
    assert got == Counter((*where, None if math.isnan(value) else value) for where, value in rows.items())
    assert not (folder / OUTBOX).exists()


def test_what_is_put_in_while_the_thread_looks_is_sent_even_if_the_run_ends_at_once(
    tmp_path, monkeypatch, brief
) -> None:
    lister = Lister([])
    monkeypatch.setattr(store, "open_client", lambda _uri: lister)
    box = Outbox.create(tmp_path, HEADER)
    sender = Delivery(URI, [box])
    look, looked, ended = box.next, threading.Event(), threading.Event()

    def first_look():
        found = look()
        box.next = look
        looked.set()
        assert ended.wait(10)
        return found

    box.next = first_look
    sender.start()
    assert looked.wait(10)
    sender.put({"do": "metrics", "rows": [["loss", 1.0, 1, 1]]})
    threading.Timer(0.1, ended.set).start()  # after ``finish`` has said that nothing more will come
    assert sender.finish() == 0
    assert [one.step for one in lister.metrics] == [1]


class Switched:
    """A server in front of a real store, which can be switched off; the requests it lets through are counted."""

    def __init__(self, client: object, uri: str) -> None:
        self._client, self.uri, self.is_on, self.requests = client, uri, True, 0

    def __getattr__(self, name: str) -> object:
        value = getattr(self._client, name)
        if not callable(value):
            return value

        def request(*arguments: object, **options: object) -> object:
            if not self.is_on:
                raise MlflowException(f"API request to {self.uri} failed with exception: connection refused")
            self.requests += 1
            return value(*arguments, **options)

        return request

    def answers(self, _uri: str) -> bool:
        return self.is_on

    def check_answers(self, uri: str) -> None:
        if not self.is_on:
            raise ConnectionError(f"tracking.uri={uri} does not answer.")


@pytest.fixture
def server(client, brief, monkeypatch: pytest.MonkeyPatch) -> Switched:
    """An address that leads to the tests' store, as long as it is switched on."""
    switched = Switched(client, URI)
    monkeypatch.setattr(store, "open_client", lambda _uri: switched)
    monkeypatch.setattr(store, "answers", switched.answers)
    monkeypatch.setattr(store, "check_answers", switched.check_answers)
    return switched


def history(client, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in client.get_metric_history(run_id, key)]


def test_training_goes_on_when_the_server_dies_and_the_record_is_whole_when_it_is_back(
    client, server, experiment, tmp_path, caplog
) -> None:
    caplog.set_level(logging.INFO, "panollava")
    (tmp_path / "answers.csv").write_text("a,b")
    options = {"uri": URI, "experiment": experiment, "outbox": tmp_path, "wait_seconds": 0.05, "flush_every": 1}
    with MlflowTracker(**options, run_name="job") as tracker:
        tracker.params({"epochs": 3})
        for step in range(60):
            if step == 20:
                server.is_on = False
            begun = time.monotonic()
            tracker.metrics({"loss": 1.0 / (step + 1)}, step)
            assert time.monotonic() - begun < 1.0
        tracker.table([{"question": "무슨 색?", "correct": True}], "answers.json")
        tracker.file(tmp_path / "answers.csv", "evaluation")
        time.sleep(0.05)
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len([one for one in warnings if "is unreachable" in one]) == 1
    assert f"python -m panollava.deliver {tmp_path}" in warnings[-1]
    run_id = tracker.run_id
    assert len(history(client, run_id)) <= 20
    assert client.get_run(run_id).info.status == "RUNNING"

    server.is_on = True
    waiting, left = deliver(tmp_path)
    assert waiting >= 40
    assert left == 0
    assert history(client, run_id) == [(step, 1.0 / (step + 1)) for step in range(60)]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params, run.info.run_name) == ("FINISHED", {"epochs": "3"}, "job")
    assert {one.path for one in client.list_artifacts(run_id)} == {"answers.json", "evaluation"}
    assert "answers.json" in run.data.tags["mlflow.loggedArtifacts"]
    assert not (tmp_path / OUTBOX).exists()
    assert deliver(tmp_path) == (0, 0)


def test_a_resumed_run_sends_what_its_first_process_could_not(client, server, experiment, tmp_path) -> None:
    options = {"uri": URI, "experiment": experiment, "outbox": tmp_path, "wait_seconds": 0.0}
    first = MlflowTracker(**options)
    first.start()
    server.is_on = False
    first.metrics({"loss": 2.0}, step=1)
    first.close("KILLED")
    second = MlflowTracker(**options, run_id=first.run_id)
    second.start()  # the server is away still: it answered before, so the run goes on
    second.metrics({"loss": 2.5}, step=1)  # taken again, from the checkpoint on
    second.metrics({"loss": 1.0}, step=2)
    second.close()
    server.is_on = True
    with MlflowTracker(**options, run_id=second.run_id) as third:
        third.metrics({"loss": 0.5}, step=3)
    assert first.run_id == second.run_id == third.run_id
    assert history(client, first.run_id) == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert not (tmp_path / OUTBOX).exists()


@pytest.mark.parametrize("way", ["by the command", "when it goes on"])
def test_a_job_of_a_sweep_may_begin_without_the_server(client, store_uri, server, experiment, tmp_path, way) -> None:
    parent = client.create_run(experiment_id(client, store_uri, experiment)).info.run_id
    options = {"uri": URI, "experiment": experiment, "outbox": tmp_path, "wait_seconds": 0.0, "run_name": "job"}
    server.is_on = False
    with MlflowTracker(**options, parent_run_id=parent, tags={"swept": "0.5"}) as tracker:
        tracker.params({"epochs": 1})
        tracker.metrics({"loss": 1.0}, step=1)
    local = tracker.run_id
    assert local.startswith("local-")
    server.is_on = True
    if way == "by the command":
        assert deliver(tmp_path)[1] == 0
    with MlflowTracker(**options, run_id=local, parent_run_id=parent) as again:
        again.params({"epochs": 2})
        again.metrics({"loss": 0.5}, step=2)
    runs = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert [run.info.run_id for run in runs] == [again.run_id]
    assert history(client, again.run_id) == [(1, 1.0), (2, 0.5)]
    assert runs[0].data.params == {"epochs": "1"}
    assert runs[0].info.run_name == "job"
    assert not (tmp_path / OUTBOX).exists()


@pytest.mark.parametrize("way", ["by the command", "when the sweep goes on"])
def test_a_sweep_whose_server_is_gone_at_its_end_ends_in_the_store_later(
    client, server, experiment, tmp_path, way
) -> None:
    parent = start_parent(URI, experiment, "sweep", tmp_path)
    options = {"uri": URI, "experiment": experiment, "outbox": tmp_path / "job", "wait_seconds": 0.0}
    killed = MlflowTracker(**options, parent_run_id=parent)
    killed.start()
    client.set_tag(killed.run_id, PID_TAG, str(2**22 + 1))  # no system has a process of that number
    server.is_on = False
    (tmp_path / "sweep.md").write_text("a table")
    assert end_parent(URI, parent, "FAILED", [tmp_path / "sweep.md"], tmp_path) == 2
    assert client.get_run(parent).info.status == "RUNNING"
    server.is_on = True
    if way == "by the command":
        assert deliver(tmp_path) == (2, 0)
        assert client.get_run(parent).info.status == "FAILED"
    else:
        assert start_parent(URI, experiment, "sweep", tmp_path, parent) == parent
        assert client.get_run(parent).info.status == "RUNNING"
    assert [file.path for file in client.list_artifacts(parent, "sweep")] == ["sweep/sweep.md"]
    assert client.get_run(killed.run_id).info.status == "KILLED"
    assert not (tmp_path / OUTBOX).exists()
    assert end_parent(URI, parent, "FINISHED", [], tmp_path) == 0
    assert client.get_run(parent).info.status == "FINISHED"
    killed.close()


def test_a_run_of_its_own_does_not_begin_without_the_server(server, experiment, tmp_path) -> None:
    server.is_on = False
    with pytest.raises(ConnectionError, match="does not answer"):
        MlflowTracker(uri=URI, experiment=experiment, outbox=tmp_path).start()
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_will_never_take_does_not_hold_up_the_rest(
    client, server, experiment, tmp_path, caplog
) -> None:
    options = {"uri": URI, "experiment": experiment, "outbox": tmp_path, "wait_seconds": 0.0}
    with MlflowTracker(**options) as tracker:
        tracker.params({"epochs": 1})
        tracker._put({"do": "params", "values": {"epochs": "2"}})  # MLflow never changes a parameter
        tracker.metrics({"loss": 1.0}, step=1)
    assert "rejects params" in caplog.text
    assert history(client, tracker.run_id) == [(1, 1.0)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    (box,) = Outbox.left_behind(tmp_path)
    assert (box.waiting(), box.refused) == (1, 1)
    box.release()
    assert deliver(tmp_path) == (1, 1)


def test_a_request_that_breaks_a_server_that_is_there_is_put_aside_in_the_end(
    client, server, experiment, tmp_path, monkeypatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MlflowException("API request failed: too many 500 error responses")

    monkeypatch.setattr(outbox, "ATTEMPTS", 3)
    options = {"uri": URI, "experiment": experiment, "outbox": tmp_path, "wait_seconds": 5.0}
    with MlflowTracker(**options) as tracker:
        monkeypatch.setattr(server, "log_artifact", broken, raising=False)
        tracker.text("too large", "note.txt")
        tracker.metrics({"loss": 1.0}, step=1)
    assert history(client, tracker.run_id) == [(1, 1.0)]
    (box,) = Outbox.left_behind(tmp_path)
    assert box.refused == 1
    box.release()


COPY_S = 1.3  # that the slow server takes to store a file after it has received it


class SlowStore(BaseHTTPRequestHandler):
    """As much of an MLflow server as a delivery needs, whose artifacts are slow to store."""

    took: list[str]

    def do_GET(self) -> None:
        info = {"run_id": "r", "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/r", "status": "RUNNING"}
        self._answer({"run": {"info": info, "data": {}}} if "runs/get" in self.path else {})

    def do_POST(self) -> None:
        self._content()
        self.took.append(self.path.rpartition("/")[2])
        self._answer({})

    def do_PUT(self) -> None:
        self.took.append(f"{self.path.rpartition('/')[2]}: {self._content()}")
        time.sleep(COPY_S)
        with contextlib.suppress(BrokenPipeError):  # the client does not wait any more
            self._answer({})

    def _content(self) -> int:
        return len(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, answer: dict) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def slow_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that answers within MLflow's time only where that grows with a file; what it took."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(outbox, "LAST_PAUSE_S", 0.001)
    took: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (SlowStore,), {"took": took})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", took
        server.shutdown()


@pytest.mark.parametrize("size", [2_000, 10], ids=["large", "small"])
def test_a_server_has_more_time_for_a_larger_file(slow_store, tmp_path, monkeypatch, caplog, size) -> None:
    uri, took = slow_store
    monkeypatch.setattr(operations, "SLOWEST_RATE", 100.0)
    monkeypatch.setattr(outbox, "ATTEMPTS", 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(size))
    box = Outbox.create(tmp_path / "run", {**HEADER, "uri": uri, "run_id": f"r{size}"})  # MLflow keeps addresses by run
    sender = Delivery(uri, [box], wait_seconds=20).start()
    sender.put({"do": "folder", "into": "model"}, tmp_path / "model")
    sender.put({"do": "metrics", "rows": [["loss", 1.0, 1, 1]]})
    is_large = size > 100
    assert sender.finish() == (0 if is_large else 1)
    assert took == [f"weights: {size}"] * (1 if is_large else 2) + ["log-batch"]
    if not is_large:
        assert "does not take a record (the answer takes longer than 1 s)" in caplog.text
        assert "unreachable" not in caplog.text


def test_scores_and_status_do_not_wait_for_a_model(server, experiment, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    tracker = MlflowTracker(uri=URI, experiment=experiment, outbox=tmp_path, wait_seconds=0.0, register="m")
    tracker.start()
    server.is_on = False
    tracker.metrics({"test/score": 0.5}, step=0)
    tracker.model(tmp_path / "model", ModelLoss(0.5, "data"))
    tracker.close()
    (box,) = Outbox.left_behind(tmp_path)
    lines = (box.folder / outbox.OPERATIONS).read_text().splitlines()
    box.release()
    assert [json.loads(line)["do"] for line in lines] == ["metrics", "status", "folder", "register", "status"]
