"""What a start finds of an earlier one: inputs that changed, and evaluations that do not stand for today's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from panollava.checkpoint import FORMAT_VERSION
from panollava.data.augment import AugmentOptions
from panollava.evaluation.predictions import METRICS
from panollava.run import conditions
from panollava.run import run as run_module
from panollava.run.run import Run, changed_inputs, place_evaluation_due
from panollava.run_folder import METADATA
from panollava.stages.registry import STAGES

SPLIT = {"texts": "t", "pictures": "p"}
INPUTS = {"vision": {"files": {"a": "1"}}, "language": {"commit": "c"}, "train": SPLIT, "val": SPLIT}


def started(inputs: dict[str, Any], *, directions: str = "words", augment: bool = False) -> Any:
    """A run with these contents."""
    run = SimpleNamespace(
        cfg=SimpleNamespace(dry_run=False),
        stages=STAGES,
        data=SimpleNamespace(augment=AugmentOptions(augment=augment), train=_Records(directions)),
        plain={"model": {"vision": {"name": "v"}, "language": {"name": "l"}}, "data": {"name": "d", "train_csv": "x"}},
        _inputs=inputs,
        _places={"train": "b", "val": "b"},
    )
    run.inputs = lambda name: Run.inputs(run, name)
    return run


class _Records(list[int]):
    """A split of two records."""

    def __init__(self, said: str) -> None:
        super().__init__([0, 1])
        self.said = said

    def directions(self, index: int) -> str:
        return self.said

    def picture(self, index: int) -> Path:
        return Path(f"{index}.jpg")


def kept(folder: Path, stage: str, inputs: dict[str, Any]) -> Path:
    """The folder of a stage with these inputs on record."""
    model = {"resampler": {"type": "mlp"}}
    needed = {"stage": stage, "experiment_name": "e", "model": model, "crop": {}, "form": 99}
    document = {"format_version": FORMAT_VERSION, **needed, "inputs": inputs}
    (folder / METADATA).write_text(json.dumps(document))
    return folder


def corrected(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same pictures with another answer."""
    return {**inputs, "train": {**inputs["train"], "texts": "others"}}


def test_a_corrected_answer_changes_the_stages_that_read_texts(tmp_path: Path) -> None:
    """Also where an earlier version recorded the texts for all stages."""
    now = started(corrected(INPUTS))
    places = {split: {**SPLIT, "places": "b"} for split in ("train", "val")}
    for stage, of_then in (("vision", INPUTS), ("detect", {**INPUTS, **places})):
        for recorded in (of_then, started(INPUTS).inputs(stage)):
            assert changed_inputs(now, stage, kept(tmp_path, stage, recorded), "…") == ""
    told = changed_inputs(now, "finetune", kept(tmp_path, "finetune", started(INPUTS).inputs("finetune")), "…")
    assert "data.train_csv=x (texts)." in told
    other = started({**INPUTS, "val": {**SPLIT, "pictures": "q"}})
    assert "(pictures)" in changed_inputs(other, "vision", kept(tmp_path, "vision", INPUTS), "…")
    assert "(pictures)" in changed_inputs(other, "vision", kept(tmp_path, "vision", now.inputs("vision")), "…")


def test_what_allows_rotations_counts_where_pictures_are_rotated(tmp_path: Path) -> None:
    for augment in (False, True):
        before, now = (started(INPUTS, directions=said, augment=augment) for said in ("none", "words"))
        told = changed_inputs(now, "vision", kept(tmp_path, "vision", before.inputs("vision")), "…")
        assert ("(directions)" in told) is augment


@pytest.mark.parametrize(("blank", "has_blank", "is_due"), [(True, False, True), (True, True, False), (False,) * 3])
def test_an_evaluation_without_blank_pictures_does_not_stand_for_one_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank: bool, has_blank: bool, is_due: bool
) -> None:
    document = {
        "settings": {"conditions": {}, "max_samples": None},
        "blank": {"with_scores": {}} if has_blank else None,
    }
    (tmp_path / METRICS).write_text(json.dumps(document))
    monkeypatch.setattr(conditions, "place_conditions", lambda *_: {})
    monkeypatch.setattr(run_module, "find_checkpoint", lambda folder: folder)
    run: Any = SimpleNamespace(
        cfg=SimpleNamespace(
            dry_run=False,
            stage=SimpleNamespace(run=["detect"]),
            evaluation=SimpleNamespace(blank=blank, max_samples=None),
        ),
        stages=STAGES,
        pending=[],
        data=SimpleNamespace(test=object()),
        experiment=SimpleNamespace(evaluated=lambda name: tmp_path, stage_folder=lambda name: tmp_path),
        backbones=SimpleNamespace(model={}),
        plain={"crop": {}},
        known=None,
    )
    assert place_evaluation_due(run) is is_due
