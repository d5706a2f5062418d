"""What every kind of table has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection

import numpy as np


class Table(ABC):
    """A table with holes.

    Attributes:
        names: One name per column; None for a bare array, whose columns go by their places.
        x: float64 (n, d), NaN in the holes.
    """

    names: list[str] | None
    x: np.ndarray

    @abstractmethod
    def __init__(self, content: bytes, na_values: Collection[str]) -> None:
        """Reads a file's content; ``na_values`` are texts that mean a hole, beside empty cells and NaN.

        Raises:
            DataError: It cannot be read, or a cell is neither a number nor a hole.
        """

    @abstractmethod
    def filled(self, x: np.ndarray) -> bytes:
        """Returns the content with every hole taken from ``x`` (n, d), all else as it was."""

    @property
    def holes(self) -> np.ndarray:
        """The cells without a value, bool (n, d)."""
        holes: np.ndarray = np.isnan(self.x)
        return holes


class Holes:
    """What means a hole, beside an empty cell and NaN."""

    def __init__(self, na_values: Collection[str]) -> None:
        self.texts = {"", *(text.strip() for text in na_values)}
        self.numbers = {value for text in self.texts if (value := _float(text)) is not None}

    def number(self, text: str) -> float:
        """Returns the number a text is, NaN for a hole; ValueError for anything else."""
        if text in self.texts:
            return math.nan
        if "_" in text:  # Python's own way to group digits, and nobody else's
            raise ValueError
        value = float(text)
        return math.nan if value in self.numbers else value

    def among(self, x: np.ndarray) -> np.ndarray:
        """Returns which of the numbers mean a hole, bool of the same shape."""
        among: np.ndarray = np.isin(x, list(self.numbers))
        return among


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
