"""Data files that were moved together with a recorded configuration are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vadtune.config import load_recorded_search, load_search, load_trial


def config(folder: Path, **data: Any) -> Path:
    folder.mkdir(parents=True)
    tree = {"name": "t", "data": {"source": "file", "missing": {"ratio": 0.2}, **data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def test_a_table_that_was_moved_with_a_configuration_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("table.csv", "project/data/table.csv", "project/masks.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    missing = {"mechanism": "file", "path": "/old/project/masks.npy"}
    file = config(tmp_path / "project" / "best" / "01", path="/old/project/data/table.csv", missing=missing)
    data = load_trial(file).data
    assert data.origin == str(tmp_path / "project" / "data" / "table.csv"), "the longest common end counts"
    assert data.missing.model_dump()["path"] == str(tmp_path / "project" / "masks.npy")
    assert load_recorded_search(file).data == data
    assert f"/old/project/data/table.csv is not there, {data.origin} is read instead" in caplog.text
    assert load_search(file).data.origin == "/old/project/data/table.csv", "search files name their data"


def test_a_table_that_is_there_or_nowhere_stays(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.csv").write_text("")
    assert load_trial(config(tmp_path / "a" / "b", path=str(tmp_path / "table.csv"))).data.origin == str(
        tmp_path / "table.csv"
    )
    assert load_trial(config(tmp_path / "c", path="/old/other.csv")).data.origin == "/old/other.csv"


def test_hdf5_files_are_found_by_their_prefix(tmp_path: Path) -> None:
    (tmp_path / "sfm.h5").write_text("")
    file = config(tmp_path / "best", source="sfm", path="/old/sfm")
    assert load_trial(file).data.origin == str(tmp_path / "sfm")
