"""An export of vadtune 0.1.0 still imputes and retests as it did: six members and a regression, with its results."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from vadtune.cli import main
from vadtune.data import DataConfig, IncompleteDataset, load_dataset
from vadtune.ensemble.ensemble_json import read_ensemble
from vadtune.evaluation.retest import run_clean_retest, run_retest


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacks the export; its table is found there and not at the path of the search."""
    shutil.unpack_archive(Path(__file__).parent / "export_0_1_0.zip", tmp_path)

    def moved(data: DataConfig) -> IncompleteDataset:
        return load_dataset(data.model_copy(update={"path": str(tmp_path / "table.csv")}))

    monkeypatch.setattr("vadtune.ensemble.shared_dataset.load_dataset", moved)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def assert_same_rows(rows: list[dict[str, object]], expected: list[dict[str, str]]) -> None:
    assert len(rows) == len(expected) > 0
    for row, before in zip(rows, expected, strict=True):
        assert list(row) == list(before)
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(float(before[name]), rel=1e-4), name
            else:
                assert str(value) == before[name], name


def test_an_earlier_export_imputes_as_it_did(earlier: Path) -> None:
    ensemble = read_ensemble(earlier / "ensemble")
    assert ensemble is not None
    assert len(ensemble.members) == 6
    assert ensemble.regression is not None
    command = ["impute", str(earlier / "ensemble"), str(earlier / "table.csv"), "--out", str(earlier / "now.csv")]
    assert main(command) == 0
    now, before = (
        np.array([[float(cell) for cell in row.values()] for row in rows_of(earlier / name)])
        for name in ("now.csv", "filled.csv")
    )
    np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-5)


def test_an_earlier_export_is_retested_as_it_was(earlier: Path) -> None:
    result = run_retest(earlier / "ensemble", [0.3, 0.7], [0, 1], store_masks=False, baselines=[])
    assert_same_rows(result.summary(), rows_of(earlier / "retest.csv"))
    assert_same_rows(run_clean_retest(earlier / "ensemble"), rows_of(earlier / "clean.csv"))
