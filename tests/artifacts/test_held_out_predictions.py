from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import trial_config
from vadtune.artifacts.held_out_predictions import HELD_OUT_FILE, load_held_out, save_held_out
from vadtune.core.errors import ModelFolderError
from vadtune.data import IncompleteDataset, load_dataset, mask_sha256


def test_held_out_predictions_survive_and_are_of_their_cells_alone(tmp_path: Path, iris: IncompleteDataset) -> None:
    held_out = iris.search_data.validation
    predictions = np.random.default_rng(0).normal(size=len(held_out.values)).astype(np.float32)
    save_held_out(tmp_path, predictions, held_out)
    np.testing.assert_array_equal(load_held_out(tmp_path, held_out), predictions)
    other = load_dataset(trial_config(data={"holdout": {"folds": 3}}).data).search_data.validation
    assert other.cells.sum() == held_out.cells.sum()
    with pytest.raises(ModelFolderError, match="about other held-out cells than those of this data"):
        load_held_out(tmp_path, other)


@pytest.mark.parametrize(
    "harm", ["gone", "truncated", "altered", "encrypted", "short", "double", "infinite", "pickled", "bomb"]
)
def test_damaged_held_out_predictions_are_one_error(harm: str, tmp_path: Path, iris: IncompleteDataset) -> None:
    held_out = iris.search_data.validation
    predictions = np.random.default_rng(0).normal(size=len(held_out.values)).astype(np.float32)
    path, cells = tmp_path / HELD_OUT_FILE, np.array(mask_sha256(held_out.cells))
    save_held_out(tmp_path, predictions, held_out)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match harm:
        case "gone":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:100])
        case "altered":
            path.write_bytes(content)
        case "encrypted":
            content = bytearray(path.read_bytes())
            start = content.find(b"PK\x01\x02")
            while start >= 0:
                content[start + 8] |= 1  # a flag of the directory's entry
                start = content.find(b"PK\x01\x02", start + 1)
            path.write_bytes(content)
        case "short":
            np.savez(path, predictions=predictions[:-1], cells=cells)
        case "double":
            np.savez(path, predictions=predictions[: len(predictions) // 2].astype(np.float64), cells=cells)
        case "infinite":
            np.savez(path, predictions=np.full_like(predictions, np.inf), cells=cells)
        case "pickled":
            np.savez(path, predictions=np.array([{}], dtype=object), cells=cells)
        case "bomb":
            np.savez_compressed(path, predictions=np.zeros(10**7, np.float32), cells=cells)
    with pytest.raises(ModelFolderError, match=r"held_out\.npz: cannot be used \(.*\); search again"):
        load_held_out(tmp_path, held_out)
