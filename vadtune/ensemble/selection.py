"""Ensembles: the weights with which the trials of a search are averaged, chosen on held-out cells.

Greedy forward selection with replacement (Caruana, Niculescu-Mizil, Crew & Ksikes 2004, section 2.1): from the best
model on, the model whose addition lowers the error of the mean most is added, again and again; how often a model was
taken is its weight. All that selection needs of predictions is the mean products of the models' residuals, since the
squared error of a weighted mean with weights w, Σw = 1, is wᵀ P w.

Shape comments: m models, c held-out cells, g groups of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

PICKS = 50
"""Picks of the greedy selection: weights are multiples of a fiftieth at the finest."""

MOST_MEMBERS = 8
"""Distinct models that greedy selection takes at most: each is one more to refit, to keep and to infer with."""

GROUPS = 5
"""Groups of rows: weights chosen on four fifths of the rows are scored on the last fifth."""

_UNIFORM_TOP = 5
_CHUNK = 2**20  # cells at once: bounds the memory of residuals

Products = np.ndarray
"""Sums of products of residuals by group (g, m, m), float64, over the number of all cells: their sum is P."""


class Selection(NamedTuple):
    """Weights, and what they are worth on the held-out cells.

    Attributes:
        weights: (m,), of sum 1.
        rmse: Of the weighted mean, over the very cells the weights were chosen on: a little optimistic.
        unseen_rmse: Of means whose weights were chosen on the other rows' cells: not so.
        best_rmse: Of the best single model, over the same cells, and chosen on them.
        best_unseen_rmse: Of single models that were chosen on the other rows' cells.
    """

    weights: np.ndarray
    rmse: float
    unseen_rmse: float
    best_rmse: float
    best_unseen_rmse: float


def residual_products(predictions: Sequence[np.ndarray], truth: np.ndarray, rows: np.ndarray) -> Products:
    """Returns all that selection needs to know of predictions.

    Args:
        predictions: What each model predicts for the held-out cells, (c,) each.
        truth: Their true values (c,).
        rows: The row of each cell (c,), a whole number: cells of a row stay in one group, their errors being alike.
    """
    m, count = len(predictions), len(truth)
    products = np.zeros((GROUPS, m, m))
    order = np.random.default_rng(0).permutation(int(rows.max()) + 1) % GROUPS
    group_of = order[rows]
    for group in range(GROUPS):
        for cells in np.array_split(cells_of := np.flatnonzero(group_of == group), 1 + len(cells_of) // _CHUNK):
            residuals = np.stack([of_model[cells] for of_model in predictions]).astype(np.float64) - truth[cells]
            products[group] += residuals @ residuals.T / count
    return products


def select(products: Products, choose: Callable[[np.ndarray], np.ndarray]) -> Selection:
    """Chooses weights and scores them.

    Args:
        products: From ``residual_products``.
        choose: From mean products of residuals (m, m) to weights (m,): ``greedy``, say.
    """
    everything = products.sum(0)
    weights = choose(everything)
    unseen = best_unseen = 0.0
    for group in products:
        rest = everything - group
        chosen, best = choose(rest), int(np.diag(rest).argmin())
        unseen += _squared_error(chosen, group)
        best_unseen += group[best, best]
    best_rmse = float(np.sqrt(np.diag(everything).min()))
    rmse = float(np.sqrt(_squared_error(weights, everything)))
    return Selection(weights, rmse, float(np.sqrt(unseen)), best_rmse, float(np.sqrt(best_unseen)))


def greedy(products: np.ndarray, *, most: int = MOST_MEMBERS) -> np.ndarray:
    """Returns the weights (m,) of greedy forward selection with replacement.

    The best number of picks up to PICKS is kept. Of equals the first model is taken, and the fewest picks: the same
    products give the same weights.

    Args:
        products: Mean products of the models' residuals (m, m).
        most: How many distinct models may be taken.
    """
    own = np.diag(products)
    counts = np.zeros(len(own))
    counts[own.argmin()] = 1
    error, best_counts = float(own.min()), counts.copy()
    for picks in range(2, PICKS + 1):
        errors = (counts @ products @ counts + 2 * products @ counts + own) / picks**2
        if np.count_nonzero(counts) >= most:
            errors[counts == 0] = np.inf
        pick = int(errors.argmin())
        counts[pick] += 1
        if errors[pick] < error:
            error, best_counts = float(errors[pick]), counts.copy()
    weights: np.ndarray = best_counts / best_counts.sum()
    return weights


def top(products: np.ndarray, count: int) -> np.ndarray:
    """Returns equal weights (m,) of the ``count`` best models, 0 for the others."""
    best = np.diag(products).argsort(kind="stable")[:count]
    weights = np.zeros(len(products))
    weights[best] = 1 / len(best)
    return weights


def greedy_by_ratio(products: np.ndarray, missing_ratio: float) -> np.ndarray:
    """Returns greedy weights (m,), mixed with a uniform top 5 where much is missing.

    The more is missing, the fewer and the noisier are the cells that weights are chosen on, and equal weights need
    none. The share of the uniform mean is 0 up to a missing ratio of .5, and from there grows with it to 1.
    """
    share = max(0.0, (missing_ratio - 0.5) / 0.5)
    return (1 - share) * greedy(products) + share * top(products, _UNIFORM_TOP)


def weighted_sum(arrays: Iterable[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the sum, float64, of arrays of one shape, each by its weight; one at a time is in memory."""
    total: np.ndarray | float = 0.0
    for array, weight in zip(arrays, weights, strict=True):
        total = total + np.multiply(array, weight, dtype=np.float64)
    return np.asarray(total)


def _squared_error(weights: np.ndarray, products: np.ndarray) -> float:
    return float(max(weights @ products @ weights, 0.0))
