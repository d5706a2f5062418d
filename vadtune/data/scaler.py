"""Conversion between the units of a source and those that models train in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vadtune.data.row_blocks import row_blocks


@dataclass(frozen=True)
class Scaler:
    """Column-wise affine map between a source's units and the units models train in.

    Attributes:
        offset: float64 (d,), subtracted.
        scale: float64 (d,), divided by; positive.
    """

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, mask: np.ndarray, *, one_scale: bool = False) -> Scaler:
        """Returns the standardisation to mean 0 and variance 1 of the observed cells of ``x`` (n, d).

        Columns without two different observed values keep scale 1. With ``one_scale`` all columns have the same scale
        and variance 1 on average, which keeps the shapes of points and images.
        """
        return cls.fit_rows(x, np.arange(len(x)), mask, one_scale=one_scale)

    @classmethod
    def fit_rows(cls, x: np.ndarray, rows: np.ndarray, mask: np.ndarray, *, one_scale: bool = False) -> Scaler:
        """Returns ``fit(x[rows], mask)`` without a copy of the rows (r,) of ``x`` (n, d); mask (r, d)."""

        def total(values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            """Returns the sum (d,) over rows of values of observed cells; rows are added in order, as by np.sum."""
            sums = np.empty((0, x.shape[1]))
            for block in row_blocks(len(rows), x.shape[1]):
                terms = np.where(mask[block], values(x[rows[block]]), 0.0)
                sums = np.concatenate([sums, terms]).sum(0)[None]
            result: np.ndarray = sums.sum(0)
            return result

        count = np.maximum(mask.sum(0), 1)
        offset = total(lambda block: block) / count
        scale = np.sqrt(total(lambda block: (block - offset) ** 2) / count)
        if one_scale:
            scale = np.full_like(scale, np.sqrt(np.mean(scale**2)))
        return cls(offset, np.where(scale > 1e-12 * np.maximum(np.abs(offset), 1.0), scale, 1.0))

    @classmethod
    def identity(cls, d: int) -> Scaler:
        """Returns the scaler that leaves ``d`` columns unchanged."""
        return cls(np.zeros(d), np.ones(d))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Returns ``x`` (..., d) in training units, float32."""
        return np.asarray((x - self.offset) / self.scale, dtype=np.float32)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """Returns ``x`` (..., d) in the source's units, float64."""
        return np.asarray(x * self.scale + self.offset, dtype=np.float64)

    def to_dict(self) -> dict[str, list[float]]:
        """Converts to plain lists, for JSON."""
        return {"offset": self.offset.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scaler:
        """Converts the result of ``to_dict`` back."""
        return cls(np.asarray(values["offset"], dtype=np.float64), np.asarray(values["scale"], dtype=np.float64))
