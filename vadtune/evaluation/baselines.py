"""Imputation methods a search should beat. To add one: a function here, one line in BASELINES.

Each is fitted once, on the masked rows that the models were trained on, and then imputes rows with any share of missing
cells, as the models do. A method with a setting chooses it as a search does: fitted on the train rows, on held-out
observed validation cells.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vadtune.core.metrics import score
from vadtune.data import MaskedRows, SearchData

Impute = Callable[[np.ndarray], np.ndarray]
"""Takes rows (n, d), NaN where missing; returns them filled, float64 (n, d)."""

_NEIGHBOURS = (3, 5, 10, 20, 40)
_NEAREST_COLUMNS = 20
_TREES, _TREE_ROUNDS = 10, 3


def fit_mean(data: SearchData, rows: MaskedRows) -> Impute:
    """Fills a missing cell with the mean of its column over the observed train cells."""
    from sklearn.impute import SimpleImputer

    return _transform(SimpleImputer(keep_empty_features=True), rows)


def fit_knn(data: SearchData, rows: MaskedRows) -> Impute:
    """Fills a missing cell with the mean of the nearest train rows that have it (Troyanskaya et al. 2001).

    The number of neighbours is the best on the held-out validation cells.
    """
    from sklearn.impute import KNNImputer

    given, truth, held_out = data.validation

    def fitted(k: int, rows: MaskedRows) -> Impute:
        return _transform(KNNImputer(n_neighbors=k, keep_empty_features=True), rows)

    counts = [k for k in _NEIGHBOURS if k < len(data.train.x)]
    return fitted(min(counts, key=lambda k: score(fitted(k, data.train)(given.x), truth, held_out).rmse), rows)


def fit_iterative(data: SearchData, rows: MaskedRows) -> Impute:
    """Predicts each column from the others by Bayesian ridge regression, in rounds (van Buuren 2011).

    Two settings keep it from diverging on rows with fewer missing cells than it was fitted on, where the defaults reach
    errors a hundred times those of the mean: the 20 most correlated columns predict, and predictions stay within the
    observed range of their column.
    """
    return _iterative(rows, n_nearest_features=_NEAREST_COLUMNS)


def fit_iterative_trees(data: SearchData, rows: MaskedRows) -> Impute:
    """Predicts each column from the others by extremely randomised trees, in rounds, much like missForest.

    Stekhoven & Bühlmann 2012, with extra trees in place of a random forest.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    trees = ExtraTreesRegressor(_TREES, random_state=0)
    return _iterative(rows, estimator=trees, max_iter=_TREE_ROUNDS)


BASELINES: dict[str, Callable[[SearchData, MaskedRows], Impute]] = {
    "mean": fit_mean,
    "knn": fit_knn,
    "iterative": fit_iterative,
    "iterative_trees": fit_iterative_trees,
}
"""Name -> what takes the data that settings are chosen on and the rows to fit on, and returns what imputes."""


def _iterative(train: MaskedRows, **settings: Any) -> Impute:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes the next import possible
    from sklearn.impute import IterativeImputer

    lowest, highest = observed_range(train)
    imputer = IterativeImputer(
        min_value=lowest, max_value=highest, keep_empty_features=True, random_state=0, **settings
    )
    return _transform(imputer, train)


def observed_range(train: MaskedRows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and greatest observed value of every column, (d,) each, a little apart where they are equal."""
    lowest = np.where(train.mask, train.x, np.inf).min(0)
    highest = np.where(train.mask, train.x, -np.inf).max(0)
    lowest, highest = (np.where(train.mask.any(0), bound, 0.0) for bound in (lowest, highest))
    return lowest, np.where(highest > lowest, highest, lowest + 1e-6)


def _transform(imputer: Any, train: MaskedRows) -> Impute:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: thousands of tiny linear systems gain nothing from more, and lose tenfold where cores are busy.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of rounds is bounded on purpose
        imputer.fit(train.x)

    def impute(x: np.ndarray) -> np.ndarray:
        with threadpool_limits(1):
            return np.asarray(imputer.transform(x), dtype=np.float64)

    return impute
