"""New stores are copies of a cached empty one, and no different from those that MLflow creates."""

from __future__ import annotations

import contextlib
import gzip
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vadtune.core.errors import TrackingError
from vadtune.tracking.store import connect

pytestmark = pytest.mark.slow


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vadtune"


def new_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Connects to a store that does not exist, in a working directory of its own; returns its URI."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    connect(uri := f"sqlite:///{folder / 'mlflow.db'}")
    return uri


def content(folder: Path) -> set[str]:
    """Returns a database as SQL, without its folder and the time it was created."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        dump = "\n".join(database.iterdump()).replace(str(folder), "FOLDER")
    return set(re.sub(r"\b\d{13}\b", "TIME", dump).splitlines())


def no_creation(engine: Any) -> None:
    raise RuntimeError("MLflow creates the tables")


def test_a_copy_is_like_what_mlflow_creates(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_store(tmp_path / "private", monkeypatch)
    (copy,) = cache.iterdir()
    assert b"private" not in gzip.decompress(copy.read_bytes())
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", no_creation)
    uri = new_store(tmp_path / "copied", monkeypatch)
    assert content(tmp_path / "copied") == content(tmp_path / "private")
    client = connect(uri)
    run = client.create_run(client.create_experiment("mine"))
    client.set_terminated(run.info.run_id)
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert client.get_experiment("0").artifact_location == str(tmp_path / "copied" / "mlruns" / "0")


def test_a_copy_is_of_one_version_of_mlflow(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_store(tmp_path / "before", monkeypatch)
    monkeypatch.setattr("vadtune.tracking.empty_store.version", lambda package: "99.0")
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", no_creation)
    with pytest.raises(TrackingError, match="MLflow creates the tables"):
        new_store(tmp_path / "after", monkeypatch)


@pytest.mark.parametrize("damage", [lambda copy: copy[:-9], lambda copy: copy[:99], lambda copy: b"?"])
def test_a_damaged_copy_is_replaced(
    damage: Callable[[bytes], bytes], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(tmp_path / "first", monkeypatch)
    (copy,) = cache.iterdir()
    copy.write_bytes(damage(copy.read_bytes()))
    new_store(tmp_path / "second", monkeypatch)
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", no_creation)
    new_store(tmp_path / "third", monkeypatch)
    assert content(tmp_path / "first") == content(tmp_path / "second") == content(tmp_path / "third")


def test_without_a_cache_mlflow_creates_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    uri = new_store(tmp_path / "store", monkeypatch)
    assert [experiment.name for experiment in connect(uri).search_experiments()] == ["Default"]
