from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.datasets import load_breast_cancer, load_digits

from tests.conftest import trial_config
from tests.own_data import data_config
from vadtune.config import TrialConfig
from vadtune.core.errors import DataError
from vadtune.data import (
    SOURCES,
    HoldoutConfig,
    IncompleteDataset,
    MaskedRows,
    Scaler,
    hold_out,
    load_dataset,
    mask_sha256,
)
from vadtune.data.dataset import rows_to_score
from vadtune.data.missingness import Mcar, Mnar
from vadtune.data.sources.table_file import TableFile


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_loads_split_and_standardised(source: str, tmp_path: Path) -> None:
    dataset = load_dataset(data_config(source, tmp_path))
    d = len(dataset.feature_names)
    assert dataset.train.x.shape[1] == dataset.validation.x.shape[1] == dataset.test_truth.shape[1] == d
    assert dataset.train.x.dtype == np.float32
    assert np.isfinite(dataset.test_truth).all()
    if dataset.layout.point_dims is not None:
        np.testing.assert_allclose(np.nanmean(dataset.train.x**2), 1, atol=1e-2)
    elif dataset.layout.image is None:
        np.testing.assert_allclose(np.nanmean(dataset.train.x, axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.nanstd(dataset.train.x, axis=0), 1, atol=1e-3)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "diabetes", "iris"])
def test_bundled_tables_are_those_of_scikit_learn(name: str) -> None:
    theirs = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    raw = SOURCES[name].model_validate({"source": name}).load()
    x = theirs.data / 16 if name == "digits" else theirs.data
    assert (raw.x.dtype, raw.x.tobytes()) == (theirs.data.dtype, x.tobytes())
    assert raw.feature_names == list(theirs.feature_names)
    assert {type(feature) for feature in raw.feature_names} == {str}
    assert raw.layout.image == ((8, 8) if name == "digits" else None)


def test_digits_are_split_and_masked_as_in_the_published_comparison() -> None:
    x = load_digits().data / 16
    rows = np.random.RandomState(0).permutation(len(x))
    test_rows = rows[int(0.85 * len(x)) :]
    dataset = load_dataset(SOURCES["digits"].model_validate({"source": "digits", "missing": {"ratio": 0.5, "seed": 3}}))
    np.testing.assert_array_equal(dataset.test_truth, x[test_rows].astype(np.float32))
    test_mask = np.random.RandomState(1000 * 2 + 17 * 2 + int(0.7 * 100)).rand(*x[test_rows].shape) > 0.7
    np.testing.assert_array_equal(dataset.test_part(0.7, 2).mask, test_mask)
    train_mask = np.random.RandomState(1000 * 3 + int(0.5 * 100)).rand(*dataset.train.mask.shape) > 0.5
    np.testing.assert_array_equal(dataset.train.mask, train_mask)


def test_the_scaler_knows_observed_train_cells_only() -> None:
    x = load_breast_cancer().data
    dataset = load_dataset(SOURCES["breast_cancer"].model_validate({"source": "breast_cancer"}))
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
    for part in (iris.train, iris.validation, iris.search_data.validation.visible, iris.test_part(0.5, 0)):
        np.testing.assert_array_equal(np.isnan(part.x), ~part.mask)


def test_hold_outs_are_observed_cells_hidden_from_inference(iris: IncompleteDataset) -> None:
    given_part, truth, cells = iris.search_data.validation
    folds = iris.config.holdout.folds
    observed = np.tile(iris.validation.mask, (folds, 1))
    np.testing.assert_array_equal(given_part.mask, observed & ~cells)
    np.testing.assert_array_equal(np.isnan(truth), ~observed)
    np.testing.assert_array_equal(np.sum(np.split(cells, folds), axis=0), iris.validation.mask)


def test_a_search_sees_no_test_row_and_no_missing_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing every test row and every missing cell at the source leaves what a search sees as it is."""
    config = trial_config().data
    before = load_dataset(config)
    source = config.load()
    x = np.full_like(source.x, 777.0)
    order = np.random.RandomState(0).permutation(len(x))
    for rows, part in zip(
        np.split(order, [len(before.train.x), -len(before.test_truth)]), (before.train, before.validation), strict=False
    ):
        x[rows] = np.where(part.mask, source.x[rows], x[rows])
    monkeypatch.setattr(type(config), "load", lambda config: source._replace(x=x))
    after = load_dataset(config)
    assert not np.isclose(after.test_truth, before.test_truth).any()
    assert pickle.dumps(after.search_data) == pickle.dumps(before.search_data)
    assert after.scaler.to_dict() == before.scaler.to_dict()


def test_mask_hash_tells_shape_and_cells_apart() -> None:
    mask = np.ones((4, 6), dtype=bool)
    other = mask.copy()
    other[2, 3] = False
    assert mask_sha256(mask) == mask_sha256(mask.copy())
    assert len({mask_sha256(mask), mask_sha256(other), mask_sha256(mask.reshape(6, 4))}) == 3


def test_masks_are_told_apart_by_what_is_recorded(iris: IncompleteDataset) -> None:
    assert iris.mask_hashes == load_dataset(iris.config).mask_hashes
    other = load_dataset(trial_config(data={"missing": {"ratio": 0.3, "seed": 1}}).data)
    assert not set(iris.mask_hashes.values()) & set(other.mask_hashes.values())


@given(st.integers(1, 60), st.integers(1, 9), st.integers(2, 7), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_observed_cell_is_held_out_once_and_folds_are_even(
    n: int, d: int, folds: int, observed: float, seed: int
) -> None:
    part = MaskedRows.hide(np.zeros((n, d)), np.random.default_rng(seed).random((n, d)) < observed)
    given_part, _, cells = hold_out(part, HoldoutConfig(folds=folds), seed=seed)
    stacked = cells.reshape(folds, n, d)
    np.testing.assert_array_equal(stacked.sum(0), part.mask)
    np.testing.assert_array_equal(given_part.mask.reshape(folds, n, d), part.mask & ~stacked)
    of_rows = stacked.sum(2)  # (folds, n): a row deals its cells out evenly
    assert (of_rows.max(0) - of_rows.min(0) <= 1).all()


def test_folds_are_of_about_equal_size_where_rows_have_few_cells() -> None:
    part = MaskedRows.hide(np.zeros((4000, 10)), np.random.default_rng(0).random((4000, 10)) > 0.9)
    sizes = hold_out(part, HoldoutConfig(folds=4), seed=0).cells.reshape(4, -1).sum(1)
    assert sizes.min() / sizes.max() > 0.9


def test_data_without_a_cell_to_infer_from_are_refused(tmp_path: Path) -> None:
    x = np.full((40, 3), np.nan)
    x[np.arange(40), np.arange(40) % 3] = np.arange(40.0)
    np.save(tmp_path / "x.npy", x)
    config = {"source": "file", "path": str(tmp_path / "x.npy"), "missing": "none"}
    with pytest.raises(DataError, match="a validation row with one to hold out and one to infer from"):
        load_dataset(TableFile.model_validate(config))


def test_train_rows_may_be_complete_while_others_have_holes() -> None:
    """The adversarial case: models never see a hole before they are tested on them."""
    same = load_dataset(trial_config().data)
    config = trial_config(data={"train_missing": "none"}).data
    adversarial = load_dataset(config)
    assert adversarial.train.mask.all()
    np.testing.assert_array_equal(adversarial.validation.mask, same.validation.mask)
    np.testing.assert_array_equal(adversarial.test_mask(0.3, 0), same.test_mask(0.3, 0))
    assert config.missing_in_train.ratio == 0


def test_train_missingness_takes_what_it_leaves_out_from_the_other() -> None:
    missing = {"mechanism": "mnar", "ratio": 0.4, "seed": 5}
    config = trial_config(data={"missing": missing, "train_missing": {"ratio": 0.2}}).data
    assert config.missing_in_train == Mnar(ratio=0.2, seed=5)
    assert trial_config(data={"missing": missing}).data.missing_in_train == config.missing
    other = trial_config(data={"missing": missing, "train_missing": {"mechanism": "mcar"}}).data
    assert other.missing_in_train == Mcar()


@pytest.mark.parametrize("source", SOURCES)
def test_a_data_section_survives_being_written_and_read(source: str, tmp_path: Path) -> None:
    config = trial_config().model_copy(update={"data": data_config(source, tmp_path)})
    assert TrialConfig.model_validate(config.to_dict()) == config
    written = list(config.to_dict()["data"])
    assert [written[0], *written[-2:]] == ["source", "missing", "holdout"]
    assert set(written) <= set(SOURCES[source].model_fields)


def test_constant_columns_and_empty_rows_are_borne(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    x[:, 2] = 7.0
    x[[3, 40]] = np.nan
    np.save(tmp_path / "x.npy", x)
    dataset = load_dataset(TableFile(source="file", path=str(tmp_path / "x.npy")))
    assert "2 of 60 rows have no value at all" in caplog.text
    assert dataset.scaler.scale[2] == 1
    assert np.nanmax(np.abs(dataset.train.x[:, 2])) == 0


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        ((5, 1), np.inf, r"must be finite and below 1e\+30, columns x1 hold others"),
        ((5, 1), -1e200, r"must be finite and below 1e\+30, columns x1 hold others"),
        ((slice(None), 2), np.nan, "columns x2 have no value at all; leave them out"),
        ((slice(None), slice(1, None)), np.nan, "columns x1, x2, x3, x4, x5 and 2 more have no value at all"),
    ],
)
def test_columns_nothing_can_be_learnt_from_are_named(
    cell: tuple[object, ...], value: float, message: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(60, 8))
    x[cell] = value
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=message):
        load_dataset(TableFile(source="file", path=str(tmp_path / "x.npy")))


def test_a_column_known_for_test_rows_only_is_named(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    test_rows = np.random.RandomState(0).permutation(60)[51:]
    x[np.setdiff1d(np.arange(60), test_rows), 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="columns x1 have no value in the train rows"):
        load_dataset(TableFile(source="file", path=str(tmp_path / "x.npy")))


def test_many_validation_rows_are_scored_by_a_sample() -> None:
    mask = np.random.default_rng(0).random((5_000, 100)) < 0.5
    few = rows_to_score(mask, HoldoutConfig(), seed=0)
    assert len(np.unique(few)) == 1_000
    np.testing.assert_array_equal(few, rows_to_score(mask, HoldoutConfig(), seed=0))
    assert not np.array_equal(few, rows_to_score(mask, HoldoutConfig(), seed=1))
    narrow = rows_to_score(mask[:, :10], HoldoutConfig(), seed=0)
    assert mask[narrow, :10].sum() == pytest.approx(20_000, rel=0.02)
    assert len(rows_to_score(mask, HoldoutConfig(rows=7), seed=0)) == 7
    for config in (HoldoutConfig(rows=9_999), HoldoutConfig()):
        np.testing.assert_array_equal(rows_to_score(mask[:900], config, seed=0), np.arange(900))


def test_the_rows_to_score_are_an_option() -> None:
    dataset = load_dataset(trial_config(data={"holdout": {"rows": 5}}).data)
    assert len(dataset.search_data.validation.cells) == 5 * 4
    scored = dataset.validation.of_rows(dataset.scored_rows)
    assert dataset.search_data.validation.cells.sum() == scored.mask.sum()


def test_what_is_held_out_of_some_rows_is_that_of_all(iris: IncompleteDataset) -> None:
    whole, n = iris.search_data.validation, len(iris.validation.x)
    some = whole.of_rows(np.array([2, 5]), n)
    folds = len(whole.cells) // n
    for fold in range(folds):
        for place, row in enumerate((2, 5)):
            np.testing.assert_array_equal(some.visible.x[2 * fold + place], whole.visible.x[n * fold + row])
            np.testing.assert_array_equal(some.cells[2 * fold + place], whole.cells[n * fold + row])
    assert len(some.values) == iris.validation.mask[[2, 5]].sum()
