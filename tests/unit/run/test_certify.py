"""Where certificates are written, and which of those on disk are a run's."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from panollava.evaluation.certificates import Plan
from panollava.run import certify
from panollava.store.identity import FileIdentity


def document(**settings: Any) -> dict[str, Any]:
    """A ``certificates.json`` of one certificate."""
    one = {"name": "yaw", "verdict": "passes", "difference": 0.0, "low": None, "high": None}
    conditions = {"questions": settings.pop("questions", "q")}
    values = {"fingerprint": "w", "split": "test", "data": {"name": "world"}, "conditions": conditions}
    values |= {"tilt_deg": 5.0, "least_effect": 0.05, **settings}
    return {"experiment_name": "demo", "created": "2026-01-01T00:00:00", "certificates": [one], "settings": values}


def written(parent: Path, experiment: str = "demo") -> Path:
    return certify._write(parent, experiment, f"{experiment} on world-test", [], Plan(), [], {"least_effect": 0.05})


def test_commands_that_end_in_one_second_write_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 1)))
    names = [written(tmp_path / "demo").name for _ in range(3)]
    assert names == [f"certificates_20260101_000000{number}" for number in ("", "_2", "_3")]


def test_any_name_of_an_experiment_is_recorded(tmp_path: Path) -> None:
    folder = written(tmp_path, "trained on rooms")
    assert json.loads((folder / "certificates.json").read_text("utf-8"))["experiment_name"] == "trained on rooms"


def newest(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(certify, "fingerprint", lambda *_: "w")
    run: Any = SimpleNamespace(checkpoint=Path("x.ckpt"), settings={"experiment_name": "demo"})
    return certify.newest_document(run, root, FileIdentity(None))


def put(root: Path, name: str, content: Any) -> None:
    folder = root / "eval_results" / "demo" / f"certificates_{name}"
    folder.mkdir(parents=True)
    (folder / "certificates.json").write_text(json.dumps(content), encoding="utf-8")


def test_the_newest_of_a_second_is_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "20260101_000000", document(tilt_deg=5.0))
    put(tmp_path, "20260101_000000_2", document(tilt_deg=10.0))
    assert newest(tmp_path, monkeypatch)["settings"]["tilt_deg"] == 10.0


@pytest.mark.parametrize(
    "damaged",
    [
        document() | {"certificates": [{"verdict": "passes"}]},
        document() | {"certificates": ["yaw"]},
        document() | {"certificates": [{"name": "yaw", "verdict": "passes", "difference": 0.1}]},
        document() | {"settings": {"fingerprint": "w"}},
        document() | {"settings": {"fingerprint": "w", "conditions": "all"}},
        document() | {"created": None, "settings": []},
        [],
    ],
)
def test_a_damaged_document_is_skipped(damaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "20260101_000000", document())
    put(tmp_path, "20260102_000000", damaged)
    assert newest(tmp_path, monkeypatch) == document()


def test_documents_that_were_not_asked_alike_are_named() -> None:
    assert certify.differing_settings([document(), document()]) == []
    others = [document(questions="r"), document(max_pictures=3), document(tilt_deg=9.0), document(other_crop={"a": 1})]
    for other, key in zip(others, ["questions", "max_pictures", "tilt_deg", "other_crop"], strict=True):
        assert certify.differing_settings([document(), other]) == [key]
    fewer = document() | {"certificates": []}
    assert certify.differing_settings([document(), fewer]) == ["only"]


def test_certificates_that_other_crops_ask_in_other_changes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crop without an overlap is swapped for another renderer alone, and tiles of 90 degrees turn by other angles."""
    swapped = {
        "eight": {"crop_swap": ["crop.renderer=torch", "crop.overlap=0.25"], "view_loss": ["grey=8"]},
        "four": {"crop_swap": ["crop.renderer=torch"], "view_loss": ["grey=4"]},
    }
    for name, asked in swapped.items():
        found = [
            {**document()["certificates"][0], "name": one, "changes": dict.fromkeys(changes, 0.0)}
            for one, changes in {"tilt": ["tilt_deg=5"], **asked}.items()
        ]
        put(tmp_path / name, "20260101_000000", document() | {"certificates": found})
    monkeypatch.setattr(certify, "fingerprint", lambda *_: "w")
    run: Any = SimpleNamespace(checkpoint=Path("x.ckpt"), settings={"experiment_name": "demo"})
    documents = [certify.newest_document(run, tmp_path / name, FileIdentity(None)) for name in swapped]
    assert certify.differing_changes([documents[0], documents[0]]) == []
    monkeypatch.setattr(certify, "newest_document", lambda run, *_: run)
    text = certify.recorded_certificates(dict(zip(swapped, documents, strict=True)), tmp_path, FileIdentity(None))  # type: ignore[arg-type]
    assert text.endswith("so that its numbers do not compare: crop_swap.\n")
    assert certify.recorded_certificates({"eight": documents[0]}, tmp_path, FileIdentity(None)).endswith("|\n")  # type: ignore[dict-item]
