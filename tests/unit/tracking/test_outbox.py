"""Operations on disk: in order, whole, and owned by one process at a time."""

from __future__ import annotations

import json

import pytest
from filelock import Timeout

from panollava.tracking.operations import Operation
from panollava.tracking.outbox import OPERATIONS, OUTBOX, Outbox

HEADER = {"uri": "http://127.0.0.1:1", "experiment": "e", "run_id": "r", "local_id": None, "reached": {}}


def metric(step: int) -> Operation:
    return {"do": "metrics", "rows": [["loss", 1.0 / (step + 1), 1000 + step, step]]}


def taken(box: Outbox) -> list[Operation]:
    """Everything that waits, as if it had arrived."""
    found = []
    while (waiting := box.next()) is not None:
        box.arrived(*waiting)
        found.append(waiting[0])
    return found


def test_operations_come_out_as_they_went_in_and_metrics_many_at_once(tmp_path) -> None:
    box = Outbox.create(tmp_path, HEADER)
    box.put({"do": "params", "values": {"이름": 'a "b"\n'}})
    for step in range(1200):
        box.put(metric(step))
    box.put({"do": "status", "status": "FINISHED", "time": 5})
    assert box.waiting() == 1202
    first, *metrics, last = taken(box)
    assert first["values"] == {"이름": 'a "b"\n'}
    assert [len(one["rows"]) for one in metrics] == [1000, 200]
    assert [row for one in metrics for row in one["rows"]] == [metric(step)["rows"][0] for step in range(1200)]
    assert last["status"] == "FINISHED"
    assert (box.folder / OPERATIONS).stat().st_size == 0
    box.put(metric(7))
    assert taken(box) == [metric(7)]
    box.release()
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_left_is_taken_up_where_it_stopped(tmp_path) -> None:
    box = Outbox.create(tmp_path, HEADER)
    for step in range(3):
        box.put({"do": "params", "values": {"step": str(step)}})
    box.arrived(*box.next())
    assert not box.in_doubt
    assert Outbox.left_behind(tmp_path) == []  # it is owned
    box.release()
    (again,) = Outbox.left_behind(tmp_path)
    assert again.in_doubt
    assert again.header == HEADER
    assert [one["values"]["step"] for one in taken(again)] == ["1", "2"]
    again.release()


def test_half_a_line_of_a_killed_process_is_cut_off_and_told(tmp_path, caplog) -> None:
    box = Outbox.create(tmp_path, HEADER)
    box.put(metric(0))
    box.release()
    with (box.folder / OPERATIONS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(metric(1))[:-5])
    (again,) = Outbox.left_behind(tmp_path)
    assert "an incomplete operation" in caplog.text
    again.put(metric(2))
    assert [row[3] for one in taken(again) for row in one["rows"]] == [0, 2]


def test_a_line_that_is_being_written_is_waited_for(tmp_path) -> None:
    box = Outbox.create(tmp_path, HEADER)
    with (box.folder / OPERATIONS).open("a", encoding="utf-8") as stream:
        stream.write('{"do": "para')
        stream.flush()
        assert box.next() is None


def test_files_go_along_even_when_the_originals_are_gone_or_new(tmp_path) -> None:
    source = tmp_path / "model" / "deep"
    source.mkdir(parents=True)
    (source / "weights").write_text("old")
    box = Outbox.create(tmp_path, HEADER)
    box.put({"do": "folder", "into": "model"}, tmp_path / "model")
    box.put({"do": "file", "into": None}, source / "weights")
    (source / "new").write_text("new")
    (source / "new").replace(source / "weights")
    (folder, end), kept = box.next(), []
    kept.append((box.folder / folder["path"] / "deep" / "weights").read_text())
    box.arrived(folder, end)
    file, _ = box.next()
    kept.append((box.folder / file["path"]).read_text())
    assert kept == ["old", "old"]
    assert not (box.folder / folder["path"]).exists()


def test_what_is_refused_is_put_aside_and_may_be_tried_again(tmp_path) -> None:
    (tmp_path / "file.txt").write_text("content")
    box = Outbox.create(tmp_path, HEADER)
    box.put({"do": "file", "into": None}, tmp_path / "file.txt")
    box.put(metric(0))
    box.refuse(*box.next(), "too large")
    assert taken(box) == [metric(0)]
    box.release()
    (again,) = Outbox.left_behind(tmp_path)
    assert (again.waiting(), again.refused, again.next()) == (1, 1, None)
    again.retry_refused()
    (operation,) = [again.next()[0]]
    assert (again.folder / operation["path"]).read_text() == "content"
    taken(again)
    again.release()
    assert not (tmp_path / OUTBOX).exists()


def test_one_process_at_a_time_and_one_server(tmp_path) -> None:
    run = tmp_path / "runs [1]" / "job"
    box = Outbox.create(run, HEADER)
    box.put(metric(0))
    with pytest.raises(Timeout):
        Outbox(box.folder)
    box.release()
    assert Outbox.left_behind(run, "http://elsewhere") == []
    assert Outbox.left_behind(tmp_path, HEADER["uri"]) == []
    (found,) = Outbox.left_behind(tmp_path, HEADER["uri"], below=True)
    assert found.folder == box.folder
