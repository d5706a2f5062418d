from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits

from tests.conftest import trial_config
from vadtune import config as config_module
from vadtune.config import DataConfig, HoldoutConfig, MissingConfig
from vadtune.data import MECHANISMS, SOURCES, IncompleteDataset, Part, Scaler, load_dataset, mask_sha256
from vadtune.data.dataset import hold_out
from vadtune.data.missingness import draw_mask
from vadtune.errors import ConfigError


def test_the_names_a_file_may_use_are_those_of_the_registries() -> None:
    assert set(config_module.SOURCES) == set(SOURCES)
    assert set(config_module.MECHANISMS) == set(MECHANISMS)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_loads_split_and_standardised(source: str) -> None:
    dataset = load_dataset(DataConfig(source=source))
    d = len(dataset.feature_names)
    assert dataset.train.x.shape[1] == dataset.validation.x.shape[1] == dataset.test_truth.shape[1] == d
    assert dataset.train.x.dtype == np.float32
    assert np.isfinite(dataset.test_truth).all()
    if source != "digits":
        np.testing.assert_allclose(np.nanmean(dataset.train.x, axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.nanstd(dataset.train.x, axis=0), 1, atol=1e-3)


def test_digits_are_split_and_masked_as_in_the_published_comparison() -> None:
    x = load_digits().data / 16
    rows = np.random.RandomState(0).permutation(len(x))
    test_rows = rows[int(0.85 * len(x)) :]
    dataset = load_dataset(DataConfig(source="digits", missing=MissingConfig(ratio=0.5, seed=3)))
    np.testing.assert_array_equal(dataset.test_truth, x[test_rows].astype(np.float32))
    test_mask = np.random.RandomState(1000 * 2 + 17 * 2 + int(0.7 * 100)).rand(*x[test_rows].shape) > 0.7
    np.testing.assert_array_equal(dataset.test_part(0.7, 2).mask, test_mask)
    train_mask = np.random.RandomState(1000 * 3 + int(0.5 * 100)).rand(*dataset.train.mask.shape) > 0.5
    np.testing.assert_array_equal(dataset.train.mask, train_mask)


def test_the_scaler_knows_observed_train_cells_only() -> None:
    x = load_breast_cancer().data
    dataset = load_dataset(DataConfig(source="breast_cancer"))
    rows = np.random.RandomState(0).permutation(len(x))[: int(0.7 * len(x))]
    observed = np.where(dataset.train.mask, x[rows], np.nan)
    np.testing.assert_allclose(dataset.scaler.offset, np.nanmean(observed, axis=0))
    np.testing.assert_allclose(dataset.scaler.scale, np.nanstd(observed, axis=0))


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_scaler_round_trips_and_survives_constant_and_unobserved_columns(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(5, 3, (n, d))
    x[:, 0] = 7.25
    mask = rng.random((n, d)) > 0.5
    mask[:, -1] = False
    scaler = Scaler.fit(x, mask)
    assert (scaler.scale > 0).all()
    np.testing.assert_allclose(scaler.inverse(scaler.transform(x)), x, rtol=1e-5, atol=1e-4)
    again = Scaler.from_dict(scaler.to_dict())
    np.testing.assert_array_equal(again.scale, scaler.scale)


def test_missing_cells_are_gone_from_every_part(iris: IncompleteDataset) -> None:
    for part in (iris.train, iris.validation, iris.search_data.validation.given, iris.test_part(0.5, 0)):
        np.testing.assert_array_equal(np.isnan(part.x), ~part.mask)


def test_hold_outs_are_observed_cells_hidden_from_inference(iris: IncompleteDataset) -> None:
    given_part, truth, cells = iris.search_data.validation
    repeats = iris.config.holdout.repeats
    observed = np.tile(iris.validation.mask, (repeats, 1))
    assert (cells <= observed).all()
    np.testing.assert_array_equal(given_part.mask, observed & ~cells)
    np.testing.assert_array_equal(np.isnan(truth), ~observed)
    first, second = np.split(cells, repeats)[:2]
    assert (first != second).any()


def test_a_search_sees_no_test_row_and_no_missing_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing every test row and every missing cell at the source leaves what a search sees as it is."""
    config = trial_config().data
    before = load_dataset(config)
    source = SOURCES[config.source]()
    x = np.full_like(source.x, 777.0)
    order = np.random.RandomState(0).permutation(len(x))
    for rows, part in zip(
        np.split(order, [len(before.train.x), -len(before.test_truth)]), (before.train, before.validation), strict=False
    ):
        x[rows] = np.where(part.mask, source.x[rows], x[rows])
    monkeypatch.setitem(SOURCES, config.source, lambda: source._replace(x=x))
    after = load_dataset(config)
    assert not np.isclose(after.test_truth, before.test_truth).any()
    assert pickle.dumps(after.search_data) == pickle.dumps(before.search_data)
    assert after.scaler.to_dict() == before.scaler.to_dict()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@given(ratio=st.floats(0.05, 0.95), seed=st.integers(0, 10_000))
def test_masks_meet_their_ratio_and_repeat_per_seed(mechanism: str, ratio: float, seed: int) -> None:
    x = np.zeros((200, 50))
    mask = draw_mask(mechanism, x, ratio, seed=seed, part="test")
    assert abs((~mask).mean() - ratio) < 5 * np.sqrt(ratio * (1 - ratio) / mask.size)
    np.testing.assert_array_equal(mask, draw_mask(mechanism, x, ratio, seed=seed, part="test"))
    assert (mask != draw_mask(mechanism, x, ratio, seed=seed + 1, part="test")).any()
    assert (mask != draw_mask(mechanism, x, ratio, seed=seed, part="train")).any()


def test_holes_of_the_source_are_never_observed() -> None:
    x = np.zeros((50, 4))
    x[:, 1] = np.nan
    assert not draw_mask("mcar", x, 0.1, seed=0, part="train")[:, 1].any()


def test_mask_hash_tells_shape_and_cells_apart() -> None:
    mask = np.ones((4, 6), dtype=bool)
    other = mask.copy()
    other[2, 3] = False
    assert mask_sha256(mask) == mask_sha256(mask.copy())
    assert len({mask_sha256(mask), mask_sha256(other), mask_sha256(mask.reshape(6, 4))}) == 3


def test_hold_out_fraction_is_met() -> None:
    part = Part.hide(np.zeros((400, 50)), np.random.default_rng(0).random((400, 50)) > 0.5)
    cells = hold_out(part, HoldoutConfig(fraction=0.25, repeats=2), seed=0).cells
    assert abs(cells.sum() / (2 * part.mask.sum()) - 0.25) < 0.02


def test_an_unknown_source_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'digits'.*breast_cancer, diabetes, digits, iris, wine"):
        load_dataset(DataConfig.model_construct(source="digit"))
