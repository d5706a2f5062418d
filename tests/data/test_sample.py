"""Searching on a sample of the train rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import trial_config
from vadtune.config import parse_trial
from vadtune.core.errors import ConfigError
from vadtune.data import IncompleteDataset, load_dataset, loading
from vadtune.data.loading import sampled_rows


def dataset(**data: object) -> IncompleteDataset:
    return load_dataset(trial_config(data={"source": "breast_cancer", **data}).data)


def test_a_search_sees_a_sample_and_a_refit_all_train_rows() -> None:
    whole, part = dataset(), dataset(sample=100)
    rows = sampled_rows(len(whole.train.x), 100)
    assert rows is not None
    assert len(set(rows.tolist())) == len(part.search_data.train.x) == 100
    np.testing.assert_array_equal(part.train.x, whole.train.x[rows])
    np.testing.assert_array_equal(part.train.mask, whole.train.mask[rows])
    for refit in ("train", "train+validation", "all-observed"):
        np.testing.assert_array_equal(part.rows_of_refit(refit).x, whole.rows_of_refit(refit).x)
    np.testing.assert_array_equal(part.rows_of_refit("none").x, part.train.x)


def test_a_sample_changes_neither_masks_nor_scaler_nor_other_rows() -> None:
    whole, part = dataset(), dataset(sample=100)
    assert part.mask_hashes == whole.mask_hashes
    np.testing.assert_array_equal(part.scaler.scale, whole.scaler.scale)
    np.testing.assert_array_equal(part.search_data.validation.truth, whole.search_data.validation.truth)
    np.testing.assert_array_equal(part.test_mask(0.5, 1), whole.test_mask(0.5, 1))


def test_samples_are_nested_and_the_limit_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = sampled_rows(1000, 50), sampled_rows(1000, 200)
    assert small is not None
    assert large is not None
    assert set(small.tolist()) < set(large.tolist())
    assert sampled_rows(1000, 1000) is None
    assert sampled_rows(1000, None) is None
    assert sampled_rows(loading.MOST_TRAIN_ROWS + 1, "all") is None
    monkeypatch.setattr(loading, "MOST_TRAIN_ROWS", 70)
    assert len(dataset().train.x) == 70
    assert len(dataset(sample="all").train.x) == len(dataset().all_train.x) == 398


def test_a_sample_is_all_or_a_number() -> None:
    with pytest.raises(ConfigError, match="takes 'all' or a number of train rows from 1"):
        parse_trial({"name": "few", "data": {"source": "iris", "sample": 0}}, [])
