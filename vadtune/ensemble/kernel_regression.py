"""Kernel ridge regression of each column on all others, over rows whose holes an ensemble has filled.

A decoder knows of a row what its latents hold. Where most of a row was observed, the other cells tell more of a
missing one than that, above all by rows alike; where little was, there is nothing but the latents. So the two are
mixed, and the share of the regression is chosen on held-out cells, as are the width of its kernel and its penalty.

A column's regression must not see the column itself: models have seen what they were trained on, and a regression on
their reconstruction of an observed cell would learn to copy it. Every column so has distances, and a system of
equations, of its own; in float32, since a penalty of .003 bounds the condition number by some 10⁶.

Kernel: Matérn 3/2, (1 + √3 r) exp(−√3 r) of the distance r in units of the length scale; the prediction is the mean of
the Gaussian process (Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, equations 4.17 and 2.25).

Shape comments: n rows, m support rows, d columns, c held-out cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vadtune.data import HeldOut, MaskedRows
from vadtune.ensemble.selection import Products, residual_products, select

# Length scales in units of the rows' root mean square distance, and penalties in units of the kernel's variance. Other
# columns and rows would do for choosing: a few of each, so that the choice costs less than what is chosen.
_GRID = ((1.0, 0.01), (1.0, 0.1), (2.0, 0.01), (3.0, 0.003), (3.0, 0.03))
_GRID_ROWS, _GRID_COLUMNS = 1500, 16

_MOST_FLOPS = 2e11  # of a fit, d · m³ / 3: seconds on one core
_MOST_SUPPORT = 3000
_MOST_COLUMNS = 1024  # beyond that too few rows could be afforded
_FEWEST_ROWS = 10  # in which a column must be observed
_CHUNK_FLOATS = 2**22  # bounds the memory of distances
_TENSORS = ("support", "dual", "centre")


class KernelRegression(NamedTuple):
    """A regression of each column on the others, and how much it is trusted. Values are in the scaler's units.

    Attributes:
        support: The rows it learned from, filled, float32 (m, d).
        dual: The weights of their kernels for each column, float32 (d, m); 0 where the column was missing.
        centre: What is predicted of each column far from all rows, (d,); NaN where a column cannot be predicted.
        length: Length scale of the kernel.
        share: Of a prediction in the mean with the ensemble's, 0 to 1.
        observed: Share of a row's cells that were observed where ``share`` was chosen. A row with fewer has a share
            that is as much smaller, since its distances are those of reconstructions.
    """

    support: Tensor
    dual: Tensor
    centre: Tensor
    length: float
    share: float
    observed: float

    def to_bytes(self) -> bytes:
        """Returns the content of a safetensors file."""
        numbers = torch.tensor([self.length, self.share, self.observed], dtype=torch.float64)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        return bytes(save_tensors({**tensors, "numbers": numbers}))

    @classmethod
    def from_bytes(cls, content: bytes) -> KernelRegression:
        """Returns what ``to_bytes`` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            found = load_tensors(content)
            support, dual, centre = (found[name] for name in _TENSORS)
            length, share, observed = found["numbers"].tolist()
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no regression ({error})") from error
        m, d = support.shape if support.dim() == 2 else (0, 0)
        if m == 0 or dual.shape != (d, m) or centre.shape != (d,):
            raise ValueError(f"its shapes do not fit together: {support.shape}, {dual.shape}, {centre.shape}")
        if {support.dtype, dual.dtype, centre.dtype} != {torch.float32}:
            raise ValueError("it holds other numbers than those of 32 bits")
        numbers_fit = length > 0 and 0 <= share <= 1 and 0 < observed <= 1 and math.isfinite(length)
        if not (numbers_fit and bool(torch.isfinite(support).all()) and bool(torch.isfinite(dual).all())):
            raise ValueError("it holds numbers out of range")
        return cls(support, dual, centre, length, share, observed)

    def refine(self, x_hat: np.ndarray, part: MaskedRows) -> np.ndarray:
        """Returns an ensemble's x_hat, float64 (n, d), with the missing cells moved towards the regression's.

        Observed cells keep their reconstruction, and rows without any observed cell the ensemble's.

        Args:
            x_hat: (n, d).
            part: The rows.
        """
        filled = _filled(part, x_hat)
        share = self.share * np.minimum(part.mask.mean(1, keepdims=True) / self.observed, 1.0)
        cells = ~part.mask & part.mask.any(1, keepdims=True) & ~np.isnan(self.centre.numpy())
        predicted = np.where(cells, self._predict(filled, cells, range(filled.shape[1])), x_hat)
        refined: np.ndarray = x_hat + share * (predicted - x_hat)
        return np.where(np.isfinite(refined), refined, x_hat)  # of values whose squares are beyond 32-bit floats

    def _predict(self, filled: Tensor, cells: np.ndarray, columns: Iterable[int]) -> np.ndarray:
        """Returns predictions of the cells (n, d) that lie in certain columns, 0 elsewhere."""
        predicted = np.zeros(filled.shape)
        chosen = list(columns)
        for start in range(0, len(filled), size := max(1, _CHUNK_FLOATS // len(self.support))):
            rows = filled[start : start + size]
            distances = _squared_distances(rows, self.support)
            for column in chosen:
                here = np.flatnonzero(cells[start : start + size, column])
                if len(here):
                    own = rows[here, column, None] - self.support[:, column]
                    kernel = _kernel(distances[here] - own.square_(), self.length)
                    predicted[start + here, column] = (kernel @ self.dual[column] + self.centre[column]).numpy()
        return predicted


class Completed(NamedTuple):
    """Rows to learn from and rows with held-out cells, as an ensemble that knows neither of these cells sees them.

    Attributes:
        train: The rows to learn from, (n, d).
        trained: What the ensemble reconstructs of them, (n, d).
        held_out: Rows with held-out cells, fold after fold.
        rows: Their number in each fold.
        x_hat: What the ensemble reconstructs of them.
    """

    train: MaskedRows
    trained: np.ndarray
    held_out: HeldOut
    rows: int
    x_hat: np.ndarray


class RegressionChoice(NamedTuple):
    """A regression that was found to be of use.

    Attributes:
        length: Length scale, in units of the root mean square distance of the rows.
        penalty: In units of the kernel's variance.
        share: Of the regression, in the mean with the ensemble.
        observed: See ``KernelRegression``.
        gain: By which share the error over the held-out cells falls, the share being chosen on those of other rows.
    """

    length: float
    penalty: float
    share: float
    observed: float
    gain: float

    def fit(self, train: MaskedRows, trained: np.ndarray) -> KernelRegression:
        """Returns the regression, fitted to rows.

        Args:
            train: Rows (n, d).
            trained: What the ensemble reconstructs of them.
        """
        fitted = _fit(train, trained, self.length, self.penalty, range(train.x.shape[1]))
        return fitted._replace(share=self.share, observed=self.observed)


def can_regress(columns: int) -> bool:
    """Whether there is a regression of so many columns at all."""
    return 1 < columns <= _MOST_COLUMNS


def choose_regression(splits: Sequence[Completed]) -> RegressionChoice | None:
    """Chooses a regression to mix with an ensemble on held-out cells; None where none lowers the error.

    Args:
        splits: The held-out cells of all together count.
    """
    d = splits[0].train.x.shape[1]
    if not can_regress(d):
        return None
    some = np.unique(np.linspace(0, d - 1, min(d, _GRID_COLUMNS)).round().astype(int)).tolist()
    found: list[tuple[float, float, float]] = []
    for length, penalty in _GRID:
        products = _products(splits, length, penalty, some, _GRID_ROWS)
        if products is None:
            return None
        found.append((select(products, _mix).rmse, length, penalty))
    _, length, penalty = min(found)
    products = _products(splits, length, penalty, list(range(d)), _MOST_SUPPORT)
    assert products is not None, "some of the columns have predictions"
    mixed = select(products, _mix)
    before, share = math.sqrt(products.sum(0)[0, 0]), float(mixed.weights[1])
    if share == 0 or not mixed.unseen_rmse < before:
        return None
    observed = float(np.mean(np.concatenate([split.held_out.visible.mask.mean(1) for split in splits])))
    return RegressionChoice(length, penalty, share, observed, 1 - mixed.unseen_rmse / before)


def _products(
    splits: Sequence[Completed], length: float, penalty: float, columns: list[int], most_rows: int
) -> Products | None:
    """Returns the products of the residuals of the ensemble and the regression; None if no cell can be predicted."""
    ours, theirs, truth, row_of = [], [], [], []
    for number, (train, trained, held_out, rows, x_hat) in enumerate(splits):
        regression = _fit(train, trained, length, penalty, columns, most_rows)
        cells = held_out.cells & ~np.isnan(regression.centre.numpy())
        predicted = regression._predict(_filled(held_out.visible, x_hat), cells, columns)
        ours.append(x_hat[cells])
        theirs.append(predicted[cells])
        truth.append(held_out.truth[cells])
        row_of.append((np.nonzero(cells)[0] % rows) * len(splits) + number)
    if not sum(map(len, truth)):
        return None
    return residual_products(
        [np.concatenate(ours), np.concatenate(theirs)], np.concatenate(truth), np.concatenate(row_of)
    )


def _mix(products: np.ndarray) -> np.ndarray:
    """Returns the weights (2,), of sum 1 and neither negative, of the least squared error."""
    between = products[0, 0] - 2 * products[0, 1] + products[1, 1]
    share = (products[0, 0] - products[0, 1]) / between if between > 0 else 0.0
    share = min(max(share, 0.0), 1.0)
    return np.array([1 - share, share])


def _fit(
    train: MaskedRows,
    trained: np.ndarray,
    length: float,
    penalty: float,
    columns: Iterable[int],
    most_rows: int = _MOST_SUPPORT,
) -> KernelRegression:
    n, d = train.x.shape
    m = min(n, most_rows, int((3 * _MOST_FLOPS / d) ** (1 / 3)))
    taken = np.sort(np.random.default_rng(0).permutation(n)[:m])
    rows = train.of_rows(taken)
    support = _filled(rows, trained[taken])
    distances = _squared_distances(support, support)
    scale = length * max(math.sqrt(float(distances.mean())), 1e-12)
    dual, centre = torch.zeros(d, m), torch.full((d,), torch.nan)
    for column in columns:
        known = torch.from_numpy(np.flatnonzero(rows.mask[:, column]))
        if len(known) < _FEWEST_ROWS:
            continue
        y = support[known, column]
        own = y[:, None] - y
        kernel = _kernel(distances[known][:, known] - own.square_(), scale)
        kernel.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(kernel)
        mean = y.mean()
        weights = torch.cholesky_solve((y - mean)[:, None], factor)[:, 0]
        if not failed and bool(torch.isfinite(weights).all()):
            dual[column, known], centre[column] = weights, mean
    return KernelRegression(support, dual, centre, scale, 1.0, 1.0)


def _filled(part: MaskedRows, x_hat: np.ndarray) -> Tensor:
    """Returns rows with their holes filled, float32."""
    return torch.from_numpy(np.where(part.mask, part.x, x_hat).astype(np.float32))


def _squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """Returns the squared distances (n, m) of rows (n, d) and others (m, d)."""
    own = rows.square().sum(1)[:, None] + others.square().sum(1)
    return own.addmm_(rows, others.T, alpha=-2)


def _kernel(squared_distances: Tensor, length: float) -> Tensor:
    """Returns the Matérn 3/2 kernel of squared distances, which are overwritten."""
    r = squared_distances.clamp_(min=0).mul_(3 / length**2).sqrt_()
    return torch.exp(-r).mul_(r.add_(1))
