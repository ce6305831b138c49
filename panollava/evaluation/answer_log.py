"""Answers on disk while they are given, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from panollava.disk import writing
from panollava.evaluation.predictions import Prediction

FOLDER = ".unfinished"
_SETTINGS = "settings"
"""Key of the first line of a file, which no answer has."""


class AnswerLog:
    """A file of answers, one a line, named after all that they depend on.

    Args:
        folder: where unfinished evaluations are kept.
        settings: what the answers depend on; those of other settings are another file.

    Attributes:
        key: digest of the settings.
        settings: as given.
        answers: sample id -> answer, those found on disk first.
        other: settings of the last evaluation beside it that did not end, where this one is not gone on with.
        goes_on: whether there were any: of an evaluation that was stopped.

    Raises:
        DiskError: the file cannot be put right.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.path = folder / FOLDER / f"{self.key}.jsonl"
        self.settings = dict(settings)
        self.answers = {one.sample_id: one for one in self._read()}
        self.goes_on = bool(self.answers)
        self.other = None if self.goes_on else self._beside()

    def add(self, answers: Sequence[Prediction]) -> None:
        """Writes answers behind the others.

        Raises:
            DiskError: they could not be written.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                if not stream.tell():
                    stream.write(json.dumps({_SETTINGS: self.settings}, default=str) + "\n")
                stream.writelines(json.dumps(asdict(one), ensure_ascii=True) + "\n" for one in answers)
                stream.flush()
                os.fsync(stream.fileno())
        self.answers |= {one.sample_id: one for one in answers}

    def discard(self) -> None:
        """Removes the file: its answers are in the result.

        Raises:
            DiskError: it could not be removed.
        """
        with writing(self.path):
            self.path.unlink(missing_ok=True)
            if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def _read(self) -> list[Prediction]:
        if not self.path.is_file():
            return []
        # The last line may be cut short: the process died while it wrote.
        lines = self.path.read_text(encoding="utf-8").split("\n")
        whole = [one for line in lines[:-1] if _SETTINGS not in (one := json.loads(line))]
        if lines[-1]:
            with writing(self.path):
                os.truncate(self.path, self.path.stat().st_size - len(lines[-1].encode()))
        return [_prediction(one) for one in whole]

    def _beside(self) -> dict[str, Any] | None:
        others = sorted(self.path.parent.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others:
            with path.open(encoding="utf-8") as stream, contextlib.suppress(ValueError):  # cut short as it began
                settings = json.loads(stream.readline()).get(_SETTINGS)
                if settings is not None and settings.get("blank") == self.settings.get("blank"):
                    return dict(settings)
        return None


def _prediction(values: dict[str, Any]) -> Prediction:
    history = tuple((question, answer) for question, answer in values.get("history", ()))
    return Prediction(**{**values, "references": tuple(values["references"]), "history": history})
