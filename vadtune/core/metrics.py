"""Scores over chosen cells: pure functions of arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """Errors over a set of cells, in the units of the arrays they were computed from."""

    rmse: float
    mae: float


def score(x_hat: np.ndarray, x_true: np.ndarray, cells: np.ndarray) -> Score:
    """Compares reconstruction and truth over ``cells``.

    Args:
        x_hat: (n, d) reconstruction or imputation.
        x_true: (n, d) ground truth; values outside ``cells`` are never read into the result and may be NaN.
        cells: bool (n, d), the cells to score.

    Raises:
        ValueError: No cell is to be scored, or the shapes differ.
    """
    if not x_hat.shape == x_true.shape == cells.shape:
        raise ValueError(f"shapes must be equal, got x_hat {x_hat.shape}, x_true {x_true.shape}, cells {cells.shape}")
    if not cells.any():
        raise ValueError("at least one cell must be scored, got none")
    error = x_hat[cells].astype(np.float64) - x_true[cells]
    return Score(rmse=float(np.sqrt(np.mean(error**2))), mae=float(np.mean(np.abs(error))))
