"""A search begun and an export written by version 0.1.0 are resumed, retested and imputed with.

data/version_0_1_0.tar.xz was made by that version in the folder /tmp/vadtune-0.1.0, which its files name: a search
``curved`` exported as ``best``, retested at ratio .3 with two mask seeds and used to fill ``curved.csv`` (filled.csv);
and a search ``begun`` of 8 trials, of 4,000 epochs each, whose processes were killed after four trials had ended.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from packaging.version import Version

ARCHIVE = Path(__file__).parent / "data" / "version_0_1_0.tar.xz"
FOLDER = Path("/tmp/vadtune-0.1.0")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(FOLDER.parent, filter="data")
    yield FOLDER
    shutil.rmtree(FOLDER)


def vadtune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "vadtune", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def runs(folder: Path) -> dict[str, tuple[str, float | None]]:
    """Returns, for each trial of the search in the store, its status and its last score."""
    query = (
        "SELECT t.value, r.status, m.value FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = "
        "'vadtune.trial_id' JOIN experiments e ON e.experiment_id = r.experiment_id AND e.name = 'begun' "
        "LEFT JOIN latest_metrics m ON m.run_uuid = r.run_uuid AND m.key = 'val_missing_rmse'"
    )
    with sqlite3.connect(folder / "mlflow.db") as store:
        return {trial: (status, score) for trial, status, score in store.execute(query)}


def test_exported_ensemble_fills_the_same_values(folder: Path) -> None:
    done = vadtune(folder, "impute", "best", "curved.csv", "--out", "again.csv")
    assert done.returncode == 0, done.stderr
    filled = pd.read_csv(folder / "again.csv")
    assert not filled.isna().any(axis=None)
    pd.testing.assert_frame_equal(filled, pd.read_csv(folder / "filled.csv"), rtol=1e-3, atol=1e-3)


def test_exported_ensemble_is_retested_with_the_same_scores(folder: Path) -> None:
    before = pd.read_csv(folder / "best" / "retest" / "retest.csv")
    done = vadtune(folder, "retest", "best", "--ratios", "0.3", "--seeds", "2", "--out", "again")
    assert done.returncode == 0, done.stderr
    after = pd.read_csv(next((folder / "again").glob("**/retest.csv")))
    models = before["kind"] != "baseline"
    assert models.sum() == 2
    known = after.loc[after["kind"] != "baseline", before.columns]
    pd.testing.assert_frame_equal(known, before[models], rtol=1e-3)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(Version(version("mlflow")) < Version("3.17"), reason="the store was written by MLflow 3.17")
def test_search_is_resumed_to_its_end(folder: Path) -> None:
    before = runs(folder)
    ended = {trial: score for trial, (status, score) in before.items() if status in ("FINISHED", "KILLED")}
    run = next(path.name for path in (folder / "runs").glob("begun-*"))
    done = vadtune(folder, "resume", run)
    assert done.returncode == 0, done.stderr
    after = runs(folder)
    assert len(after) == 8
    assert {status for status, _ in after.values()} <= {"FINISHED", "KILLED"}
    assert len(ended) >= 3
    assert {trial: after[trial][1] for trial in ended} == ended
    assert vadtune(folder, "resume", run).returncode == 0
