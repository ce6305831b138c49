"""The notebooks run, in a folder of their own; those in the repository are of the same cells, with outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from experiments.notebooks import run


@pytest.mark.parametrize("source", run.sources(), ids=lambda source: source.stem)
def test_a_notebook_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PANOLLAVA_RUN", raising=False)
    notebook = run.execute(source, tmp_path)
    outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    assert any("text/html" in one.get("data", {}) for one in outputs)  # a table
    assert any("image/jpeg" in one.get("data", {}) for one in outputs)
    committed = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in notebook.cells]
    assert all(
        cell.outputs for cell in committed.cells if cell.cell_type == "code" and cell.source.startswith("shown(")
    )
    assert source.with_suffix(".ipynb").stat().st_size < 200_000


def test_there_are_three() -> None:
    assert [source.stem for source in run.sources()] == [
        "1_views_and_data",
        "2_train_evaluate_compare",
        "3_see_ask_detect",
    ]
