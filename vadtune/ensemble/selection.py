"""Ensemble selection: the weights with which models are averaged, chosen on held-out cells.

Greedy forward selection with replacement (Caruana, Niculescu-Mizil, Crew & Ksikes 2004, "Ensemble selection from
libraries of models", section 2.1): start from the best model, repeatedly add the model that lowers the error of the
mean most, and use the number of times each model was added as its weight.

Selection needs no predictions, only the Gram matrix G of the models' residuals: the mean squared error of a weighted
mean with weights w, Σw = 1, is wᵀ G w.

Shape comments: m models, c held-out cells, g groups of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vadtune.core.errors import ConfigError

MOST_CANDIDATES = 32  # trials considered, best first: worse ones are hardly ever selected and need memory
MOST_MEMBERS = 8  # distinct models of a greedy selection: each is one more to train again, to store and to infer with
PICKS = 50  # of the greedy selection: weights are multiples of 1/50 at the finest
GROUPS = 5  # of rows: weights chosen on four fifths of the rows are scored on the last fifth
_UNIFORM_TOP = 5  # models with equal weights where much is missing
_CHUNK = 2**20  # cells at once: bounds the memory of residuals

ResidualGram = np.ndarray
"""Gram matrices of residuals by group of rows, float64 (g, m, m), divided by the number of cells of all groups, so that
their sum over groups is G."""


class Selection(NamedTuple):
    """Weights and their errors over the held-out cells, RMSE in the units of the predictions.

    Attributes:
        weights: (m,), with sum 1.
        rmse: Error of the weighted mean over the cells the weights were chosen on: slightly optimistic.
        unseen_rmse: Cross-validated error of the weighted mean: weights are chosen on other rows than those scored.
        best_rmse: Error of the best single model, over the cells it was chosen on.
        best_unseen_rmse: Cross-validated error of the best single model.
    """

    weights: np.ndarray
    rmse: float
    unseen_rmse: float
    best_rmse: float
    best_unseen_rmse: float


def parse_ensemble(text: str) -> int | None:
    """Returns K for ``top:K``, 1 for ``best`` and None for ``greedy``.

    Raises:
        ConfigError: The text is none of these.
    """
    if text in ("greedy", "best"):
        return None if text == "greedy" else 1
    kind, _, count = text.partition(":")
    if kind != "top" or not (count.isascii() and count.isdigit()) or not 1 <= int(count) <= MOST_CANDIDATES:
        raise ConfigError(f"--ensemble: takes greedy, best or top:K with K from 1 to {MOST_CANDIDATES}, got '{text}'")
    return int(count)


def residual_gram(predictions: Sequence[np.ndarray], truth: np.ndarray, rows: np.ndarray) -> ResidualGram:
    """Computes the Gram matrices of the models' residuals, (g, m, m).

    Args:
        predictions: Each model's predictions of the held-out cells, (c,) each.
        truth: True values of the cells (c,).
        rows: Row index of each cell (c,); all cells of a row are in one group, since their errors are correlated.
    """
    m, count = len(predictions), len(truth)
    gram = np.zeros((GROUPS, m, m))
    group_of = (np.random.default_rng(0).permutation(int(rows.max()) + 1) % GROUPS)[rows]
    for group in range(GROUPS):
        cells_of_group = np.flatnonzero(group_of == group)
        for cells in np.array_split(cells_of_group, 1 + len(cells_of_group) // _CHUNK):
            residuals = np.stack([values[cells] for values in predictions]).astype(np.float64) - truth[cells]
            gram[group] += residuals @ residuals.T / count
    return gram


def select(gram: ResidualGram, choose: Callable[[np.ndarray], np.ndarray]) -> Selection:
    """Chooses weights on all cells and scores them, also by cross-validation over the groups of rows.

    Args:
        gram: From ``residual_gram``.
        choose: Maps a Gram matrix (m, m) to weights (m,), such as ``greedy``.
    """
    total = gram.sum(0)
    weights = choose(total)
    unseen = best_unseen = 0.0
    for of_group in gram:
        rest = total - of_group
        best = int(np.diag(rest).argmin())
        unseen += _squared_error(choose(rest), of_group)
        best_unseen += of_group[best, best]
    squares = _squared_error(weights, total), unseen, np.diag(total).min(), best_unseen
    return Selection(weights, *(float(np.sqrt(square)) for square in squares))


def greedy(gram: np.ndarray, *, most: int = MOST_MEMBERS) -> np.ndarray:
    """Returns the weights (m,) of greedy forward selection with replacement.

    Keeps the best number of picks up to PICKS. Ties go to the first model and to the fewest picks, so the result is
    deterministic.

    Args:
        gram: Gram matrix of the models' residuals (m, m).
        most: Number of distinct models that may be selected.
    """
    squares = np.diag(gram)
    counts = np.zeros(len(squares))
    counts[squares.argmin()] = 1
    error, best_counts = float(squares.min()), counts.copy()
    for picks in range(2, PICKS + 1):
        errors = (counts @ gram @ counts + 2 * gram @ counts + squares) / picks**2
        if np.count_nonzero(counts) >= most:
            errors[counts == 0] = np.inf
        pick = int(errors.argmin())
        counts[pick] += 1
        if errors[pick] < error:
            error, best_counts = float(errors[pick]), counts.copy()
    weights: np.ndarray = best_counts / best_counts.sum()
    return weights


def top(gram: np.ndarray, count: int) -> np.ndarray:
    """Returns equal weights (m,) for the ``count`` models of the lowest error, 0 for the others."""
    best = np.diag(gram).argsort(kind="stable")[:count]
    weights = np.zeros(len(gram))
    weights[best] = 1 / len(best)
    return weights


def greedy_by_ratio(gram: np.ndarray, missing_ratio: float) -> np.ndarray:
    """Returns greedy weights (m,), shrunk towards equal weights of the best 5 where much is missing.

    The more cells are missing, the fewer and noisier are the cells the weights are chosen on. The share of the equal
    weights is 0 up to a missing ratio of 0.5 and grows linearly to 1 at a ratio of 1. A share that gives
    models less than half a pick is left out, since each of them would have to be trained.
    """
    share = (missing_ratio - 0.5) / 0.5
    if share / _UNIFORM_TOP < 0.5 / PICKS:
        share = 0.0
    return (1 - share) * greedy(gram) + share * top(gram, _UNIFORM_TOP)


def weighted_sum(arrays: Iterable[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the weighted sum, float64, of arrays of one shape, holding one of them in memory at a time."""
    total: np.ndarray | float = 0.0
    for array, weight in zip(arrays, weights, strict=True):
        total = total + np.multiply(array, weight, dtype=np.float64)
    return np.asarray(total)


def _squared_error(weights: np.ndarray, gram: np.ndarray) -> float:
    return float(max(weights @ gram @ weights, 0.0))
