"""What every kind of table has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from vadtune.core.errors import DataError

_WORDS = {"true": 1.0, "false": 0.0}


class TableFile(ABC):
    """A table as it came; its numbers are read from it, and it is written again with its holes filled.

    Attributes:
        names: One name per column; those of a bare array are x0, x1, ...
        named: Whether the file names its columns.
    """

    names: list[str]
    named: bool = True

    @abstractmethod
    def __init__(self, content: bytes) -> None:
        """Takes a file's content.

        Raises:
            DataError: It is no table of this kind.
        """

    @abstractmethod
    def numbers(self, places: Sequence[int], cells: Cells) -> np.ndarray:
        """Returns the columns at these places as float64 (n, d), NaN in holes.

        Raises:
            NotNumericError: Columns hold something else.
        """

    @abstractmethod
    def filled(self, x: np.ndarray, holes: np.ndarray) -> bytes:
        """Returns the content with every hole taken from ``x``, all else as it was; both (n, d), d all columns."""


class NotNumericError(DataError):
    """Columns that are not numeric.

    Attributes:
        others: Name -> the first thing a column holds that is no number, and its row.
    """

    def __init__(self, others: dict[str, tuple[str, int]]) -> None:
        self.others = others
        name, (text, row) = next(iter(others.items()))
        example = f"{name} holds '{text}' in row {row + 1}"
        super().__init__(
            f"columns must be numeric, got {', '.join(others)} ({example}); name what stands for a hole in na_values"
        )

    def __reduce__(self) -> tuple[type[NotNumericError], tuple[dict[str, tuple[str, int]]]]:
        return type(self), (self.others,)


class Cells:
    """How cells become numbers.

    Args:
        na_values: What stands for a hole, beside an empty cell and NaN: texts, of which those that are numbers count
            as numbers too.
        booleans: Whether true and false are 1 and 0, as in masks; they are no numbers otherwise.
    """

    def __init__(self, na_values: Collection[str] = (), *, booleans: bool = False) -> None:
        self._texts = {"", *(text.strip() for text in na_values)}
        self._holes = [value for text in self._texts if (value := _float(text)) is not None]
        self.kinds = "fiub" if booleans else "fiu"

    def number(self, text: str) -> float:
        """Returns the number a text is, NaN for a hole; ValueError for anything else."""
        if text in self._texts:
            return math.nan
        if "b" in self.kinds and text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if "_" in text:  # Python's own way to group digits, and nobody else's
            raise ValueError
        value = float(text)
        return math.nan if value in self._holes else value

    def of(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of one of ``kinds`` as float64 with NaN in holes."""
        x = array.astype(np.float64)
        x[np.isin(x, self._holes)] = np.nan
        return x


def as_type(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Returns values in a type of numbers: rounded, and no further than it reaches, where that is whole numbers."""
    if dtype.kind == "f":
        return x.astype(dtype)
    rounded: np.ndarray = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    return rounded


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
