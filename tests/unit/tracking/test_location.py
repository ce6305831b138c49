"""The store's address: absolute once, and clear about what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from panollava.tracking.location import absolute_uri, artifact_root, database_file


def test_a_relative_path_is_fixed_to_the_folder_of_the_moment(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = absolute_uri()
    monkeypatch.chdir(tmp_path.parent)
    assert database_file(uri) == tmp_path.resolve() / "mlflow.db"
    assert absolute_uri(uri) == uri


def test_artifacts_lie_beside_the_database_also_with_odd_names(tmp_path) -> None:
    folder = tmp_path / "my runs 파노라마 (1)"
    uri = absolute_uri("sqlite:///sub/runs.db", folder)
    assert database_file(uri) == folder.resolve() / "sub" / "runs.db"
    assert artifact_root(database_file(uri)) == (folder.resolve() / "sub" / "mlruns").as_uri()


def test_a_server_is_left_as_it_is() -> None:
    assert absolute_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert database_file("http://127.0.0.1:5000") is None


@pytest.mark.parametrize("uri", ["mlruns", "file:./mlruns", "sqlite:///", "", str(Path("a") / "mlflow.db")])
def test_another_address_is_refused_with_the_way_out(uri) -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri=.*sqlite:///mlflow\.db"):
        absolute_uri(uri)
