from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import trial_config
from vadtune.core.errors import ConfigError, ModelFolderError, VadtuneError
from vadtune.data import IncompleteDataset, load_dataset, mask_sha256
from vadtune.data.retest_masks import MaskKey, cells_to_score, draw_masks, stored_masks

KEYS = [MaskKey(ratio, seed) for ratio in (0.3, 0.7) for seed in (0, 1)]


def test_masks_are_those_of_their_ratio_and_seed(iris: IncompleteDataset) -> None:
    masks = draw_masks(iris, KEYS)
    np.testing.assert_array_equal(masks[KEYS[3]], iris.test_part(0.7, 1).mask)
    assert len({mask_sha256(mask) for mask in masks.values()}) == len(KEYS)


def test_stored_masks_come_back_bit_for_bit_and_grow(iris: IncompleteDataset, tmp_path: Path) -> None:
    path = tmp_path / "masks.npz"
    drawn = draw_masks(iris, KEYS)
    first = stored_masks(path, iris, KEYS[:2])
    before = path.read_bytes()
    assert list(stored_masks(path, iris, KEYS[:1])) == KEYS[:1]
    assert path.read_bytes() == before, "a file that has all masks is left alone"
    both = stored_masks(path, iris, KEYS)
    assert list(both) == KEYS
    for key, mask in both.items():
        np.testing.assert_array_equal(mask, drawn[key])
        assert mask.dtype == bool
    np.testing.assert_array_equal(both[KEYS[0]], first[KEYS[0]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["masks.npz"]


def test_what_is_stored_wins_over_what_would_be_drawn(iris: IncompleteDataset, tmp_path: Path) -> None:
    """Otherwise the file would be a mere cache, and a change of numpy could change a published comparison."""
    path = tmp_path / "masks.npz"
    stored_masks(path, iris, KEYS[:1])
    with np.load(path) as file:
        header, bits = file["header"].tobytes(), file["bits"]
    other = ~draw_masks(iris, KEYS[:1])[KEYS[0]]
    header = header.replace(mask_sha256(~other).encode(), mask_sha256(other).encode())
    bits = np.packbits(other.ravel())[None]
    np.savez(path, header=np.frombuffer(header, dtype=np.uint8), bits=bits)
    np.testing.assert_array_equal(stored_masks(path, iris, KEYS[:1])[KEYS[0]], other)


def test_altered_damaged_or_foreign_masks_are_refused(iris: IncompleteDataset, tmp_path: Path) -> None:
    path = tmp_path / "masks.npz"
    stored_masks(path, iris, KEYS)
    good = path.read_bytes()
    with np.load(path) as file:
        header, bits = file["header"], file["bits"].copy()
    bits[2, 1] ^= 16
    np.savez(path, header=header, bits=bits)
    with pytest.raises(ModelFolderError, match=r"ratio 0\.7, seed 0 was altered; delete it"):
        stored_masks(path, iris, KEYS)
    np.savez(path, header=header, bits=bits[:2])
    with pytest.raises(ModelFolderError, match="cannot be read"):
        stored_masks(path, iris, KEYS)
    for content in (b"", b"text", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelFolderError, match="cannot be read"):
            stored_masks(path, iris, KEYS)
    path.write_bytes(good)
    wine = load_dataset(trial_config(data={"source": "wine"}).data)
    with pytest.raises(ModelFolderError, match=r"masks of .*wine.* expected, got .*iris"):
        stored_masks(path, wine, KEYS)
    assert path.read_bytes() == good


def test_pickled_arrays_are_not_loaded(iris: IncompleteDataset, tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", header=np.array([object()]), bits=np.array([object()]))
    with pytest.raises(ModelFolderError, match="cannot be read"):
        stored_masks(tmp_path / "masks.npz", iris, KEYS)


def test_a_mask_must_hide_a_cell(iris: IncompleteDataset) -> None:
    with pytest.raises(
        ConfigError, match=r"a mask must hide a test cell, but ratio 0\.0001 with mask seed 0 hides none"
    ):
        draw_masks(iris, [MaskKey(0.0001, 0)])


def test_masks_that_cannot_be_kept_are_an_error(iris: IncompleteDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VadtuneError, match="cannot be written"):
        stored_masks(tmp_path / "file" / "masks.npz", iris, KEYS)


def test_cells_whose_value_nobody_knows_are_not_scored(iris: IncompleteDataset) -> None:
    mask = iris.test_mask(0.5, 0)
    np.testing.assert_array_equal(cells_to_score(iris, mask), ~mask)
    truth = iris.test_truth.copy()
    truth[0] = np.nan
    assert not cells_to_score(dataclasses.replace(iris, test_truth=truth), mask)[0].any()
