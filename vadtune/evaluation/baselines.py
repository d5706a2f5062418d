"""Imputation methods that a search should beat. To add one: write a function here and a line in BASELINES.

Each is fitted once, on the masked rows that the models were trained on, and then imputes rows of any missing ratio. A
method with a hyperparameter chooses it as a search does: fitted on train rows, scored on held-out validation cells.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vadtune.core.metrics import score
from vadtune.core.sampling import sample_rows
from vadtune.data import HeldOut, MaskedRows, SearchData

Impute = Callable[[np.ndarray], np.ndarray]
"""Maps rows (n, d), NaN where missing, to completed rows, float64 (n, d)."""

# These bound the time of baselines on large tables; tables like digits (1,527 x 64) are below all of them.
_KNN_CELLS = 200_000  # of the rows that knn fills from: imputing takes as many comparisons for each missing cell
_KNN_ROWS_TO_SCORE = 2000  # validation rows, over all folds, that its number of neighbours is chosen on
_ITERATIVE_ROWS = 5000
_TREE_SPLITS = 10_000_000  # d² · n: every round fits d forests to n rows of d columns
_ITERATIVE_COLUMNS = 200  # d regressions a round, each with d - 1 others to choose from
_FEWEST_ROWS = 200
_WORKING_MEMORY = 64  # MiB of distances at once; scikit-learn would take 1,024
_NEIGHBOURS = (3, 5, 10, 20, 40)
_NEAREST_COLUMNS = 20
_TREES, _TREE_ROUNDS = 10, 3


def fit_mean(data: SearchData, rows: MaskedRows) -> Impute:
    """Fits an imputer with the mean of each column (scikit-learn's SimpleImputer)."""
    from sklearn.impute import SimpleImputer

    return _fitted(SimpleImputer(keep_empty_features=True), rows)


def fit_knn(data: SearchData, rows: MaskedRows) -> Impute:
    """Fits an imputer with the mean of the nearest rows (KNNImputer; Troyanskaya et al. 2001).

    The number of neighbours is the best on the held-out validation cells.
    """
    from sklearn.impute import KNNImputer

    visible, truth, held_out = data.validation

    def fitted(k: int, rows: MaskedRows) -> Impute:
        return _fitted(KNNImputer(n_neighbors=k, keep_empty_features=True), rows)

    counts = [k for k in _NEIGHBOURS if k < len(data.train.x)]
    return fitted(min(counts, key=lambda k: score(fitted(k, data.train)(visible.x), truth, held_out).rmse), rows)


def fit_iterative(data: SearchData, rows: MaskedRows) -> Impute:
    """Fits Bayesian ridge regressions of each column on others, in rounds (IterativeImputer; van Buuren 2011).

    Only the 20 most correlated columns predict, and predictions stay within the observed range of their column: with
    the defaults rows of fewer missing cells than in training can diverge to errors of a hundred times the mean's.
    """
    return _iterative(rows, n_nearest_features=_NEAREST_COLUMNS)


def fit_iterative_trees(data: SearchData, rows: MaskedRows) -> Impute:
    """Fits extremely randomised trees of each column on the others, in rounds (IterativeImputer).

    Much like missForest (Stekhoven & Bühlmann 2012), which uses random forests.
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
"""Functions by name: (data to choose hyperparameters on, rows to fit to) -> imputer."""


def suited_baselines(columns: int) -> list[str]:
    """Returns the baselines that run unless others are named: those that take minutes at most."""
    slow = ("iterative", "iterative_trees") if columns > _ITERATIVE_COLUMNS else ()
    return [name for name in BASELINES if name not in slow]


def most_rows(name: str, columns: int) -> int | None:
    """Returns the number of rows that a baseline is fitted to at most; None for all."""
    limits = {"knn": _KNN_CELLS // columns, "iterative": _ITERATIVE_ROWS, "iterative_trees": _TREE_SPLITS // columns**2}
    return max(_FEWEST_ROWS, limits[name]) if name in limits else None


def fit_baseline(name: str, data: SearchData, rows: MaskedRows) -> tuple[str, Impute]:
    """Fits a baseline to rows, or to a random sample of them where there are more than ``most_rows``.

    Args:
        name: One of BASELINES.
        data: To choose hyperparameters on; a sample of it, likewise.
        rows: Rows (n, d).

    Returns:
        Its name, with the number of rows where it is fitted to a sample, and the imputer.
    """
    n, d = rows.x.shape
    most = most_rows(name, d)
    if most is None or n <= most:
        return name, BASELINES[name](data, rows)
    visible, truth, cells = data.validation
    scored = sample_rows(len(cells), _KNN_ROWS_TO_SCORE)
    validation = HeldOut(visible.of_rows(scored), truth[scored], cells[scored])
    train = data.train.of_rows(sample_rows(len(data.train.x), most))
    return f"{name} ({most} rows)", BASELINES[name](SearchData(train, validation), rows.of_rows(sample_rows(n, most)))


def observed_range(train: MaskedRows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the minimum and maximum observed value of each column, (d,) each, slightly apart where they are equal."""
    lowest = np.where(train.mask, train.x, np.inf).min(0)
    highest = np.where(train.mask, train.x, -np.inf).max(0)
    lowest, highest = (np.where(train.mask.any(0), bound, 0.0) for bound in (lowest, highest))
    return lowest, np.where(highest > lowest, highest, lowest + 1e-6)


def _iterative(train: MaskedRows, **settings: Any) -> Impute:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes the next import possible
    from sklearn.impute import IterativeImputer

    lowest, highest = observed_range(train)
    imputer = IterativeImputer(
        min_value=lowest, max_value=highest, keep_empty_features=True, random_state=0, **settings
    )
    return _fitted(imputer, train)


def _fitted(imputer: Any, train: MaskedRows) -> Impute:
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: thousands of tiny linear systems gain nothing from more, and are ten times slower on busy cores.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of rounds is limited on purpose
        imputer.fit(train.x)

    def impute(x: np.ndarray) -> np.ndarray:
        with threadpool_limits(1), config_context(working_memory=_WORKING_MEMORY):
            return np.asarray(imputer.transform(x), dtype=np.float64)

    return impute
