"""Choice of the kernel regression to mix with an ensemble: length scale, penalty and share, on held-out cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vadtune.core.sampling import sample_rows
from vadtune.data import HeldOut, MaskedRows
from vadtune.ensemble.kernel_regression import MOST_COLUMNS, MOST_SUPPORT, KernelRegression, complete, support_rows
from vadtune.ensemble.selection import ResidualGram, residual_gram, select, weighted_sum
from vadtune.training.inference import FittedModel

# (length scale, penalty), tried on some rows and columns only, so that choosing costs less than the regression itself.
_GRID = ((1.0, 0.01), (1.0, 0.1), (2.0, 0.01), (3.0, 0.003), (3.0, 0.03))
_GRID_ROWS, _GRID_COLUMNS = 1500, 16
_LEAST_GAIN = 0.005  # of the RMSE, on tables of so many rows that a regression knows a sample of them only


class RegressionSplit(NamedTuple):
    """Rows to fit a regression to and rows to score it on, with an ensemble's reconstruction of both.

    Attributes:
        train: Rows to fit to (n, d), in the scaler's units.
        train_x_hat: The ensemble's reconstruction of ``train`` (n, d).
        held_out: Rows with held-out cells, f folds stacked along the rows.
        rows: Number of rows in each fold.
        x_hat: The ensemble's reconstruction of ``held_out`` (f·rows, d), without having seen the held-out cells.
    """

    train: MaskedRows
    train_x_hat: np.ndarray
    held_out: HeldOut
    rows: int
    x_hat: np.ndarray


class RegressionChoice(NamedTuple):
    """Hyperparameters of a regression that lowers the error of an ensemble.

    Attributes:
        length: Length scale in units of the rows' root mean square distance.
        penalty: Ridge penalty in units of the kernel's variance.
        share: Weight of the regression in the mean with the ensemble, 0 to 1.
        observed: See ``KernelRegression``.
        gain: Relative decrease of the RMSE over the held-out cells, cross-validated over rows.
    """

    length: float
    penalty: float
    share: float
    observed: float
    gain: float

    def fit(self, train: MaskedRows, x_hat: np.ndarray) -> KernelRegression:
        """Fits the regression to rows (n, d), given the ensemble's reconstruction of them."""
        fitted = KernelRegression.fit(train, x_hat, length=self.length, penalty=self.penalty)
        return fitted._replace(share=self.share, observed=self.observed)


def can_regress(columns: int) -> bool:
    """Returns whether a table of so many columns can have a regression."""
    return 1 < columns <= MOST_COLUMNS


def train_support(
    train: MaskedRows, models: Iterable[FittedModel], weights: Sequence[float]
) -> tuple[MaskedRows, np.ndarray]:
    """Returns the train rows that a regression is fitted to, and the models' weighted reconstruction of these.

    Args:
        train: The train rows of the models (n, d).
        models: Their latents are those of all train rows, or of ``sample_rows`` of them.
        weights: One per model.
    """
    n, d = train.x.shape
    taken = support_rows(n, d)

    def reconstructed(model: FittedModel) -> np.ndarray:
        index = np.searchsorted(sample_rows(n, len(model.latents)), taken)
        return replace(model, latents=model.latents[index]).reconstruct_train(d)

    return train.of_rows(taken), weighted_sum(map(reconstructed, models), weights)


def worth_its_time(
    choice: RegressionChoice | None, rows: int, columns: int, progress: Callable[[str], None]
) -> RegressionChoice | None:
    """Returns the choice, or None where its gain is too small for the time that it takes to impute a large table.

    Args:
        choice: From ``choose_regression``.
        rows: Number of rows it could be fitted to.
        columns: Number of columns.
        progress: Called with a line of text if the regression is left out.
    """
    if choice is None or len(support_rows(rows, columns)) == rows or choice.gain >= _LEAST_GAIN:
        return choice
    progress(
        f"no regression: on {rows} rows it must lower the held-out RMSE by {_LEAST_GAIN:.1%} to be worth its time, "
        f"and lowers it by {choice.gain:.2%}"
    )
    return None


def choose_regression(splits: Sequence[RegressionSplit]) -> RegressionChoice | None:
    """Chooses the regression to mix with an ensemble; returns None where none lowers the error.

    Args:
        splits: Scores are over the held-out cells of all splits together.
    """
    d = splits[0].train.x.shape[1]
    if not can_regress(d):
        return None
    some = np.unique(np.linspace(0, d - 1, min(d, _GRID_COLUMNS)).round().astype(int)).tolist()
    found: list[tuple[float, float, float]] = []
    for length, penalty in _GRID:
        gram = _residual_gram(splits, length, penalty, some, _GRID_ROWS)
        if gram is None:
            return None
        found.append((select(gram, _mix).rmse, length, penalty))
    _, length, penalty = min(found)
    gram = _residual_gram(splits, length, penalty)
    assert gram is not None, "some of the columns have predictions"
    mixed = select(gram, _mix)
    before, share = math.sqrt(gram.sum(0)[0, 0]), float(mixed.weights[1])
    if share == 0 or not mixed.unseen_rmse < before:
        return None
    observed = float(np.mean(np.concatenate([split.held_out.visible.mask.mean(1) for split in splits])))
    return RegressionChoice(length, penalty, share, observed, 1 - mixed.unseen_rmse / before)


def _residual_gram(
    splits: Sequence[RegressionSplit],
    length: float,
    penalty: float,
    columns: Sequence[int] | None = None,
    most_rows: int = MOST_SUPPORT,
) -> ResidualGram | None:
    """Returns the Gram matrices (g, 2, 2) of ensemble and regression; None if no held-out cell can be predicted."""
    ensemble, regressed, truth, row_of = [], [], [], []
    for number, (train, train_x_hat, held_out, rows, x_hat) in enumerate(splits):
        regression = KernelRegression.fit(
            train, train_x_hat, length=length, penalty=penalty, columns=columns, most_rows=most_rows
        )
        cells = held_out.cells & ~np.isnan(regression.centre.numpy())
        ensemble.append(x_hat[cells])
        regressed.append(regression.predict(complete(held_out.visible, x_hat), cells)[cells])
        truth.append(held_out.truth[cells])
        row_of.append((np.nonzero(cells)[0] % rows) * len(splits) + number)
    if not sum(map(len, truth)):
        return None
    predictions = [np.concatenate(ensemble), np.concatenate(regressed)]
    return residual_gram(predictions, np.concatenate(truth), np.concatenate(row_of))


def _mix(gram: np.ndarray) -> np.ndarray:
    """Returns the weights (2,) that minimise wᵀ G w, with sum 1 and none negative."""
    curvature = gram[0, 0] - 2 * gram[0, 1] + gram[1, 1]
    share = (gram[0, 0] - gram[0, 1]) / curvature if curvature > 0 else 0.0
    share = min(max(share, 0.0), 1.0)
    return np.array([1 - share, share])
