"""Imputers in common use, tuned, for accuracy.py.

Each is a function ``fit(x, setting)`` of rows with holes that returns an imputer of rows. Settings are chosen on
held-out observed validation cells, and so is what a method learns from: the train rows alone, or the observed cells of
all rows, those to be imputed included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vadtune.core.metrics import score

Impute = Callable[[np.ndarray], np.ndarray]
"""Takes rows (n, d), NaN where missing; returns a value for every cell, float64 (n, d)."""

Fit = Callable[[np.ndarray, Any], Impute]
"""Takes rows (n, d), NaN where missing, and a setting."""

FOLDS = 4
_ENOUGH_CELLS = 1000  # held-out cells on which slow methods are tuned; the others are on all folds
_PATIENCE = 2  # settings that are worse in a row before the rest of a list, which is in order, is left out
_BIG = 60_000  # cells of a table with which rounds of trees take long


class Rows(NamedTuple):
    """All a method sees: rows with holes, float64 (n, d), NaN where missing. The truth of a hole is nowhere in it."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Tuned(NamedTuple):
    """What a peer made of the test rows, and what was chosen for it."""

    x_hat: np.ndarray
    choice: str


class Peer(NamedTuple):
    """A method.

    Attributes:
        fit: The method.
        settings: Those to choose from for a table of n rows and d columns, in order of complexity, so that the list can
            be left early.
        slow: Whether it takes so long that not all folds are scored.
    """

    fit: Fit
    settings: Callable[[int, int], Sequence[Any]]
    slow: bool = False


class HeldOut(NamedTuple):
    """Validation rows (n, d) with observed cells hidden, and which."""

    given: np.ndarray
    cells: np.ndarray


def held_out(validation: np.ndarray, seed: int, enough: float = np.inf) -> list[HeldOut]:
    """Deals the observed cells into disjoint folds; returns as many of these as it takes to have enough cells."""
    observed = ~np.isnan(validation)
    fold_of = np.random.default_rng([seed, 6]).integers(FOLDS, size=validation.shape)
    folds: list[HeldOut] = []
    for fold in range(FOLDS):
        cells = observed & (fold_of == fold)
        if sum(int(one.cells.sum()) for one in folds) < enough and cells.any():
            folds.append(HeldOut(np.where(cells, np.nan, validation), cells))
    return folds


def tuned(peer: Peer, rows: Rows, seed: int) -> Tuned:
    """Imputes the test rows with the best setting and the better of the two sets of rows to learn from.

    Args:
        peer: The method.
        rows: What it sees.
        seed: Of the folds.
    """
    fit, settings = peer.fit, peer.settings(*rows.train.shape)
    folds = held_out(rows.validation, seed, _ENOUGH_CELLS if peer.slow else np.inf)
    truth = np.concatenate([rows.validation] * len(folds))
    cells = np.concatenate([fold.cells for fold in folds])

    def of_train(setting: Any) -> np.ndarray:
        return fit(rows.train, setting)(np.concatenate([fold.given for fold in folds]))

    def of_all(setting: Any) -> np.ndarray:
        return np.concatenate(
            [fit(np.concatenate([rows.train, fold.given, rows.test]), setting)(fold.given) for fold in folds]
        )

    on_train: list[float] = []
    for setting in settings:
        on_train.append(score(of_train(setting), truth, cells).rmse)
        if len(on_train) - 1 - int(np.argmin(on_train)) == _PATIENCE:
            break
    best = int(np.argmin(on_train))
    found = [(on_train[best], "train rows", settings[best])]
    # More rows bear the same setting, or the next more complex one.
    for setting in settings[best : best + 2]:
        found.append((score(of_all(setting), truth, cells).rmse, "all rows", setting))
    _, name, setting = min(found, key=lambda one: one[0])
    learned = rows.train if name == "train rows" else np.concatenate(rows)
    return Tuned(fit(learned, setting)(rows.test), f"{name}, {setting}" if len(settings) > 1 else name)


def fit_mean(x: np.ndarray, _: None) -> Impute:
    """The mean of each column."""
    mean = _column_means(x)
    return lambda new: np.broadcast_to(mean, new.shape)


def fit_ppca(x: np.ndarray, rank: int, *, rounds: int = 200, tolerance: float = 1e-2) -> Impute:
    """Probabilistic PCA by EM over the observed cells alone (Tipping & Bishop 1999, appendix B; Ilin & Raiko 2010).

    A row is x = W z + μ + ε with z ~ N(0, I), ε ~ N(0, σ² I). The E-step has for each row, o its observed columns,
    A = W_oᵀ W_o + σ² I, E[z] = A⁻¹ W_oᵀ (x_o − μ_o), Cov[z] = σ² A⁻¹. The M-step regresses each column on (E[z], 1).

    Args:
        x: Rows (n, d), NaN where missing.
        rank: Columns of W.
        rounds: At most so many of EM.
        tolerance: Relative change of σ² below which it ends; a smaller one takes longer and imputes no better.
    """
    mask = (~np.isnan(x)).astype(float)
    mean = _column_means(x)
    centred = np.where(mask > 0, x - mean, 0.0)
    rank = min(rank, *x.shape)
    _, singular, right = np.linalg.svd(centred / np.sqrt(mask.mean()), full_matrices=False)
    loadings = right[:rank].T * singular[:rank] / np.sqrt(len(x))  # W, (d, k)
    offset = np.zeros(x.shape[1])
    noise = max(float((centred**2).sum() / mask.sum() - (loadings**2).sum() / x.shape[1]), 1e-2 * centred.var())
    for _ in range(rounds):
        z, covariance = _posterior(centred, mask, loadings, offset, noise)
        z1 = np.column_stack([z, np.ones(len(z))])
        moments = z1[:, :, None] * z1[:, None, :]
        moments[:, :rank, :rank] += covariance
        k1 = rank + 1
        gram = (mask.T @ moments.reshape(len(x), -1)).reshape(-1, k1, k1)  # of each column, over the rows that have it
        gram += 1e-8 * np.trace(gram, axis1=1, axis2=2)[:, None, None] / k1 * np.eye(k1) + 1e-12 * np.eye(k1)
        solved = np.linalg.solve(gram, (centred.T @ z1)[:, :, None])[:, :, 0]  # (d, k + 1)
        loadings, offset = solved[:, :rank], solved[:, rank]
        # Σ m (x − W z − μ)² in expectation: Σ m x² − 2 Σ m x (W z + μ) + Σ m (W z + μ)², with the column's own solution
        squares = (centred**2).sum(0) - 2 * (solved * (centred.T @ z1)).sum(1)
        squares += np.einsum("di,dij,dj->d", solved, gram, solved)
        before, noise = noise, max(float(squares.sum() / mask.sum()), 1e-8)
        if abs(before - noise) < tolerance * before:
            break

    def impute(new: np.ndarray) -> np.ndarray:
        known = ~np.isnan(new)
        z, _ = _posterior(np.where(known, new - mean, 0.0), known.astype(float), loadings, offset, noise)
        return np.asarray(z @ loadings.T + offset + mean)

    return impute


def _posterior(
    centred: np.ndarray, mask: np.ndarray, loadings: np.ndarray, offset: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns E[z] (n, k) and Cov[z] (n, k, k) of rows (n, d) that are 0 where missing."""
    k = loadings.shape[1]
    outer = (loadings[:, :, None] * loadings[:, None, :]).reshape(len(loadings), -1)
    inverse = np.linalg.inv((mask @ outer).reshape(-1, k, k) + noise * np.eye(k))
    z = np.einsum("nij,nj->ni", inverse, (centred - mask * offset) @ loadings)
    return z, noise * inverse


def fit_soft_impute(x: np.ndarray, share: float, *, rounds: int = 200, tolerance: float = 1e-3) -> Impute:
    """SoftImpute (Mazumder, Hastie & Tibshirani 2010, algorithm 1).

    Finds the matrix Z that minimises ½ Σ over observed cells (x − z)² + λ ‖Z‖_*: each round fills the holes from Z and
    shrinks the singular values by λ. Columns are centred. A row is imputed by ridge regression with λ on the factor
    V √D of Z = U D Vᵀ, which for a row of ``x`` gives back its row of Z (Hastie et al. 2015, theorem 3).

    Args:
        x: Rows (n, d), NaN where missing.
        share: λ as a share of the greatest singular value with holes 0, from which on Z would be 0.
        rounds: At most so many, for each λ on the way from the greatest, where each starts from the one before.
        tolerance: Relative change of Z below which a λ ends.
    """
    known = ~np.isnan(x)
    mean = _column_means(x)
    centred = np.where(known, x - mean, 0.0)
    greatest = float(np.linalg.norm(centred, 2))
    z = np.zeros_like(centred)
    stages = max(1, int(np.ceil(np.log2(1 / share))))
    right, shrunk = np.eye(x.shape[1]), np.zeros(x.shape[1])
    for penalty in greatest * np.geomspace(1, share, stages + 1)[1:]:
        for _ in range(rounds):
            filled = np.where(known, centred, z)
            squares, right = np.linalg.eigh(filled.T @ filled)  # V and D² of the thin side
            singular = np.sqrt(np.maximum(squares, 0.0))
            shrunk = np.maximum(singular - penalty, 0.0)
            new = (filled @ right) * (shrunk / np.maximum(singular, 1e-12)) @ right.T
            change = np.linalg.norm(new - z) / max(float(np.linalg.norm(z)), 1e-12)
            z = new
            if change < tolerance:
                break
    kept = shrunk > 0
    factor = right[:, kept] * np.sqrt(shrunk[kept])  # (d, k)

    def impute(new: np.ndarray) -> np.ndarray:
        if not kept.any():
            return np.broadcast_to(mean, new.shape)
        has = ~np.isnan(new)
        # The posterior mean of a PPCA with these loadings and noise λ is this ridge regression.
        rows, _ = _posterior(
            np.where(has, new - mean, 0.0), has.astype(float), factor, np.zeros(len(mean)), share * greatest
        )
        return np.asarray(rows @ factor.T + mean)

    return impute


def _column_means(x: np.ndarray) -> np.ndarray:
    """Returns the mean of the observed cells of each column, 0 where it has none."""
    known = ~np.isnan(x)
    return np.asarray(np.where(known, x, 0.0).sum(0) / np.maximum(known.sum(0), 1))


def fit_knn(x: np.ndarray, neighbours: int) -> Impute:
    """The mean of the nearest rows that have the cell."""
    from sklearn.impute import KNNImputer

    return _sklearn(KNNImputer(n_neighbors=neighbours, keep_empty_features=True), x)


def fit_bayesian_ridge(x: np.ndarray, nearest: int | None) -> Impute:
    """Each column by Bayesian ridge regression on the others, or on the most correlated ones, in rounds."""
    from sklearn.linear_model import BayesianRidge

    return _iterative(x, estimator=BayesianRidge(), n_nearest_features=nearest)


def fit_extra_trees(x: np.ndarray, rounds: int) -> Impute:
    """Each column by 10 extremely randomised trees on the others, in rounds, much like missForest."""
    from sklearn.ensemble import ExtraTreesRegressor

    return _iterative(x, estimator=ExtraTreesRegressor(10, random_state=0), max_iter=rounds)


def _iterative(x: np.ndarray, **settings: Any) -> Impute:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes the next import possible
    from sklearn.impute import IterativeImputer

    known = ~np.isnan(x)
    empty = ~known.any(0)
    lowest = np.where(empty, 0.0, np.where(known, x, np.inf).min(0))
    highest = np.where(empty, 0.0, np.where(known, x, -np.inf).max(0))
    # Within the observed range, as it diverges without.
    bounds = {"min_value": lowest, "max_value": np.maximum(highest, lowest + 1e-6)}
    return _sklearn(IterativeImputer(**bounds, keep_empty_features=True, random_state=0, **settings), x)


def _sklearn(imputer: Any, x: np.ndarray) -> Impute:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of rounds is bounded on purpose
        imputer.fit(x)
    return lambda new: np.asarray(imputer.transform(new), dtype=np.float64)


_SHARES = (0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625, 0.045, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)

PEERS: dict[str, Peer] = {
    "mean": Peer(fit_mean, lambda n, d: [None]),
    "knn": Peer(fit_knn, lambda n, d: [k for k in (3, 5, 10, 20, 40) if k < n]),
    "bayesian_ridge": Peer(fit_bayesian_ridge, lambda n, d: [20, None] if d > 21 else [None], slow=True),
    "extra_trees": Peer(fit_extra_trees, lambda n, d: [3 if n * d > _BIG else 5], slow=True),
    "ppca": Peer(fit_ppca, lambda n, d: [k for k in (1, 2, 3, 5, 8, 12, 15, 18, 22, 27, 40) if k < min(n, d)]),
    "soft_impute": Peer(fit_soft_impute, lambda n, d: _SHARES),
}
