"""Kernel ridge regression of each column on all other columns, fitted to rows that an ensemble has completed.

A decoder knows of a row only what its latents hold. Where most of a row is observed, similar rows predict a missing
cell better; where little is observed, the latents do. An ensemble's reconstruction is therefore mixed with this
regression; length scale, penalty and share are chosen on held-out cells, see ``regression_choice.py``.

The regression of a column must not see the column itself: models have seen the cells they were trained on, and a
regression on their reconstruction of an observed cell would learn to copy it. So every column has a kernel matrix of
its own, on the distances over the other columns. float32 suffices: a penalty of 0.003 bounds the condition number by
about 10⁶.

Kernel: Matérn 3/2, (1 + √3 r) exp(−√3 r) of the distance r in units of the length scale; the prediction is the mean of
the Gaussian process (Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, equations 4.17 and 2.25).

Shape comments: n rows, m support rows, d columns. All values are in the scaler's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vadtune.core.sampling import sample_rows
from vadtune.core.threads import one_thread
from vadtune.data import MaskedRows

MOST_COLUMNS = 1024  # more would leave too few support rows within _MOST_SUPPORT_CELLS
MOST_SUPPORT = 3000  # support rows of a regression
_MOST_SUPPORT_CELLS = 100_000  # d · m: a row's predictions take d · m kernel values at most, of 5 ns each
_FEWEST_ROWS = 10  # in which a column must be observed
_CHUNK_FLOATS = 2**18  # of distances of rows, and
_BLOCK_FLOATS = 2**17  # of kernel values of cells at once: both stay in the cache
_TENSORS = ("support", "dual", "centre")


class KernelRegression(NamedTuple):
    """A fitted regression of each column on the others, and its share in the mean with the ensemble.

    Attributes:
        support: The rows it was fitted to, completed, float32 (m, d).
        dual: Kernel weights of each column, float32 (d, m); 0 in rows where the column was missing.
        centre: Mean of each column, which is predicted far from all support rows, (d,); NaN where the column cannot be
            predicted.
        length: Length scale of the kernel.
        share: Weight of the regression in the mean with the ensemble, 0 to 1.
        observed: Share of observed cells in the rows ``share`` was chosen on. A row with a smaller share of observed
            cells gets a proportionally smaller weight, since its distances are those of reconstructions.
    """

    support: Tensor
    dual: Tensor
    centre: Tensor
    length: float
    share: float
    observed: float

    @classmethod
    def fit(
        cls,
        train: MaskedRows,
        x_hat: np.ndarray,
        *,
        length: float,
        penalty: float,
        columns: Iterable[int] | None = None,
        most_rows: int = MOST_SUPPORT,
    ) -> KernelRegression:
        """Fits the regression to observed cells, with share 1.

        Args:
            train: Rows (n, d); only ``support_rows`` of them are used.
            x_hat: The ensemble's reconstruction of the rows (n, d), for their missing cells.
            length: Length scale in units of the rows' root mean square distance.
            penalty: Ridge penalty in units of the kernel's variance.
            columns: Columns to predict; None for all.
            most_rows: Number of support rows at most.
        """
        n, d = train.x.shape
        taken = support_rows(n, d, most_rows)
        rows, m = train.of_rows(taken), len(taken)
        support = complete(rows, x_hat[taken])
        distances = _squared_distances(support, support)
        scale = length * max(math.sqrt(float(distances.mean())), 1e-12)
        dual, centre = torch.zeros(d, m), torch.full((d,), torch.nan)
        for column in range(d) if columns is None else columns:
            known = torch.from_numpy(np.flatnonzero(rows.mask[:, column]))
            if len(known) < _FEWEST_ROWS:
                continue
            y = support[known, column]
            kernel = _matern((distances[known][:, known] - (y[:, None] - y).square_()).mul_(3 / scale**2))
            kernel.diagonal().add_(penalty)
            factor, failed = torch.linalg.cholesky_ex(kernel)
            mean = y.mean()
            weights = torch.cholesky_solve((y - mean)[:, None], factor)[:, 0]
            if not failed and bool(torch.isfinite(weights).all()):
                dual[column, known], centre[column] = weights, mean
        return cls(support, dual, centre, scale, 1.0, 1.0)

    @one_thread()  # blocks are too small for several: on busy cores they would wait for each other
    def predict(self, completed: Tensor, cells: np.ndarray) -> np.ndarray:
        """Returns predictions of ``cells``, bool (n, d), in completed rows, float32 (n, d); 0 in all other cells."""
        predicted = np.zeros(completed.shape)
        support, m = self.support / (scale := self.length / math.sqrt(3)), len(self.support)
        columns, block = support.T.contiguous(), max(1, _BLOCK_FLOATS // m)
        for start in range(0, len(completed), size := max(1, _CHUNK_FLOATS // m)):
            rows = completed[start : start + size] / scale
            distances = _squared_distances(rows, support)
            row_of, column_of = map(torch.from_numpy, np.nonzero(cells[start : start + size]))
            for row, column in zip(torch.split(row_of, block), torch.split(column_of, block), strict=True):
                differences = columns[column].sub_(rows[row, column, None])
                kernel = _matern(distances[row].addcmul_(differences, differences, value=-1))
                values = kernel.mul_(self.dual[column]).sum(1) + self.centre[column]
                predicted[start + row.numpy(), column.numpy()] = values.numpy()
        return predicted

    def refine(self, x_hat: np.ndarray, part: MaskedRows) -> np.ndarray:
        """Returns an ensemble's reconstruction with its missing cells mixed with the regression.

        Observed cells and rows without any observed cell keep the ensemble's reconstruction.

        Args:
            x_hat: The ensemble's reconstruction, float64 (n, d).
            part: The rows (n, d).
        """
        share = self.share * np.minimum(part.mask.mean(1, keepdims=True) / self.observed, 1.0)
        cells = ~part.mask & part.mask.any(1, keepdims=True) & ~np.isnan(self.centre.numpy())
        predicted = np.where(cells, self.predict(complete(part, x_hat), cells), x_hat)
        refined: np.ndarray = x_hat + share * (predicted - x_hat)
        return np.where(np.isfinite(refined), refined, x_hat)  # squares of huge values overflow float32

    def to_bytes(self) -> bytes:
        """Returns the regression as the content of a safetensors file."""
        numbers = torch.tensor([self.length, self.share, self.observed], dtype=torch.float64)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        return bytes(save_tensors({**tensors, "numbers": numbers}))

    @classmethod
    def from_bytes(cls, content: bytes) -> KernelRegression:
        """Returns the regression that ``to_bytes`` wrote.

        Raises:
            ValueError: The content is damaged, or its shapes, types or values are not those of a regression.
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
            raise ValueError("it holds numbers that are not of 32 bits")
        numbers_fit = length > 0 and 0 <= share <= 1 and 0 < observed <= 1 and math.isfinite(length)
        if not (numbers_fit and bool(torch.isfinite(support).all()) and bool(torch.isfinite(dual).all())) or bool(
            centre.isinf().any()
        ):
            raise ValueError("it holds numbers out of range")
        return cls(support, dual, centre, length, share, observed)


def support_rows(n: int, columns: int, most: int = MOST_SUPPORT) -> np.ndarray:
    """Returns the rows of n, ascending, that a regression is fitted to: all, or a random sample of many."""
    return sample_rows(n, min(most, max(1, _MOST_SUPPORT_CELLS // columns)))


def complete(part: MaskedRows, x_hat: np.ndarray) -> Tensor:
    """Returns rows with their missing cells taken from ``x_hat``, float32 (n, d)."""
    return torch.from_numpy(np.where(part.mask, part.x, x_hat).astype(np.float32))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns the squared Euclidean distances (n, m) between rows a (n, d) and b (m, d)."""
    return (a.square().sum(1)[:, None] + b.square().sum(1)).addmm_(a, b.T, alpha=-2)


def _matern(squared_distances: Tensor) -> Tensor:
    """Returns the Matérn 3/2 kernel of 3 times the squared distances over the length scale; they are overwritten."""
    r = squared_distances.clamp_(min=0).sqrt_()
    return torch.exp(-r).mul_(r.add_(1))
