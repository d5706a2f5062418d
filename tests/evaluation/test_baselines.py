from __future__ import annotations

import numpy as np
import pytest

from vadtune.core.metrics import score
from vadtune.data import IncompleteDataset, MaskedRows
from vadtune.evaluation.baselines import BASELINES, fit_baseline, most_rows, observed_range, suited_baselines


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_fills_what_is_missing_and_only_that(name: str, iris: IncompleteDataset) -> None:
    impute = BASELINES[name](iris.search_data, iris.train)
    for ratio in (0.1, 0.9):  # at 0.9 whole rows are missing
        part = iris.test_part(ratio, 0)
        filled = impute(part.x)
        assert filled.shape == part.x.shape
        assert np.isfinite(filled).all()
        np.testing.assert_array_equal(filled[part.mask], part.x[part.mask])


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_repeats_and_rows_do_not_depend_on_each_other(name: str, iris: IncompleteDataset) -> None:
    part = iris.test_part(0.4, 0)
    whole = BASELINES[name](iris.search_data, iris.train)(part.x)
    impute = BASELINES[name](iris.search_data, iris.train)
    halves = np.concatenate([impute(part.x[:10]), impute(part.x[10:])])
    np.testing.assert_allclose(halves, whole, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "mean"])
def test_baselines_worth_the_name_beat_the_mean(name: str, iris: IncompleteDataset) -> None:
    methods = {method: BASELINES[method](iris.search_data, iris.train) for method in (name, "mean")}
    parts = [iris.test_part(0.3, seed) for seed in range(10)]
    errors = {
        method: np.mean([score(impute(part.x), iris.test_truth, ~part.mask).rmse for part in parts])
        for method, impute in methods.items()
    }
    assert errors[name] < 0.8 * errors["mean"]


@pytest.mark.parametrize("name", BASELINES)
def test_columns_that_are_constant_or_never_observed_are_no_trouble(name: str, iris: IncompleteDataset) -> None:
    x, mask = iris.train.x.copy(), iris.train.mask.copy()
    x[:, 0] = np.where(mask[:, 0], 2.0, np.nan)
    x[:, 1], mask[:, 1] = np.nan, False
    data = iris.search_data._replace(train=MaskedRows(x, mask))
    assert np.isfinite(BASELINES[name](data, data.train)(iris.test_part(0.5, 0).x)).all()


def test_observed_range_ignores_missing_cells(iris: IncompleteDataset) -> None:
    lowest, highest = observed_range(iris.train)
    np.testing.assert_array_equal(lowest, np.nanmin(iris.train.x, axis=0))
    np.testing.assert_array_equal(highest, np.nanmax(iris.train.x, axis=0))


def test_baselines_of_large_tables_learn_from_a_sample(
    iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(most_rows(name, 64) is None or most_rows(name, 64) > 1527 for name in BASELINES), "digits as a whole"
    assert (most_rows("knn", 784), most_rows("iterative_trees", 100)) == (255, 1000)
    monkeypatch.setattr("vadtune.evaluation.baselines._FEWEST_ROWS", 30)
    monkeypatch.setattr("vadtune.evaluation.baselines._KNN_CELLS", 120)
    part = iris.test_part(0.3, 0)
    name, impute = fit_baseline("knn", iris.search_data, iris.train)
    again, _ = fit_baseline("mean", iris.search_data, iris.train)
    assert (name, again) == ("knn (30 rows)", "mean")
    sampled = impute(part.x)
    np.testing.assert_array_equal(sampled, fit_baseline("knn", iris.search_data, iris.train)[1](part.x))
    assert not np.array_equal(sampled, BASELINES["knn"](iris.search_data, iris.train)(part.x))
    rows = iris.train.of_rows(np.sort(np.random.default_rng(0).permutation(len(iris.train.x))[:30]))
    expected = BASELINES["knn"](iris.search_data._replace(train=rows), rows)
    np.testing.assert_array_equal(sampled, expected(part.x))


def test_slow_baselines_are_left_out_on_many_columns() -> None:
    assert suited_baselines(200) == list(BASELINES)
    assert suited_baselines(201) == ["mean", "knn"]
