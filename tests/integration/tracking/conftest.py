"""One store for the tests of this folder: making its tables is the slow part."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from panollava.tracking.location import absolute_uri
from panollava.tracking.store import open_client


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory) -> str:
    return absolute_uri("sqlite:///mlflow.db", tmp_path_factory.mktemp("store 파노라마"))


@pytest.fixture(scope="session")
def client(store_uri, tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("artifacts")):  # where MLflow puts those without a place of their own
        return open_client(store_uri)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A database without runs, to be copied."""
    folder = tmp_path_factory.mktemp("empty")
    open_client(absolute_uri("sqlite:///mlflow.db", folder))
    return folder / "mlflow.db"


@pytest.fixture
def experiment(request) -> str:
    """An experiment of the test's own."""
    return f"{request.node.name}-{os.getpid()}"
