"""What all kinds of table files have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from vadtune.core.errors import DataError

_WORDS = {"true": 1.0, "false": 0.0}


class TableFile(ABC):
    """A table in its original form: numbers are read from it, and it is written again with missing cells filled.

    Attributes:
        names: One name per column; those of an array without names are x0, x1, ...
        named: Whether the file names its columns.
    """

    names: list[str]
    named: bool = True

    @abstractmethod
    def __init__(self, content: bytes) -> None:
        """Parses the content of a file.

        Raises:
            DataError: It is no table of this kind.
        """

    @abstractmethod
    def numbers(self, columns: Sequence[int], cells: Cells) -> np.ndarray:
        """Returns the columns with these indices as float64 (n, d), NaN where missing.

        Raises:
            DataError: Rows differ in length.
            NotNumericError: Columns hold something else than numbers.
        """

    @abstractmethod
    def filled(self, x: np.ndarray, missing: np.ndarray) -> bytes:
        """Returns the content with every missing cell taken from ``x``, all else unchanged.

        Args:
            x: Values of all columns (n, d).
            missing: bool (n, d).
        """


class NotNumericError(DataError):
    """Columns that are not numeric.

    Attributes:
        others: Column name -> its first value that is not a number, and the row of that.
    """

    def __init__(self, others: dict[str, tuple[str, int]]) -> None:
        self.others = others
        name, (text, row) = next(iter(others.items()))
        example = f"{name} holds '{text}' in row {row + 1}"
        super().__init__(
            f"columns must be numeric, got {', '.join(others)} ({example}); list texts of missing cells in na_values"
        )

    def __reduce__(self) -> tuple[type[NotNumericError], tuple[dict[str, tuple[str, int]]]]:
        return type(self), (self.others,)


class Cells:
    """Converts cells to numbers.

    Args:
        na_values: Texts that mark a missing cell, in addition to an empty cell and NaN; a text that is a number also
            marks that number.
        booleans: Whether true and false are read as 1 and 0, as in masks; they are errors otherwise.
    """

    def __init__(self, na_values: Collection[str] = (), *, booleans: bool = False) -> None:
        self._texts = {"", *(text.strip() for text in na_values)}
        self._missing = [value for text in self._texts if (value := _float(text)) is not None]
        self.kinds = "fiub" if booleans else "fiu"

    def number(self, text: str) -> float:
        """Converts a text to a number, NaN if missing; raises ValueError for anything else."""
        if text in self._texts:
            return math.nan
        if "b" in self.kinds and text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if "_" in text:  # 1_000 is a number to Python only
            raise ValueError
        value = float(text)
        return math.nan if value in self._missing else value

    def of(self, array: np.ndarray) -> np.ndarray:
        """Converts an array of one of ``kinds`` to float64, NaN where missing."""
        x = array.astype(np.float64)
        x[np.isin(x, self._missing)] = np.nan
        return x


def as_type(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Converts values to a numeric type; to whole numbers by rounding and clipping to the range of the type."""
    if dtype.kind == "f":
        return x.astype(dtype)
    rounded: np.ndarray = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    return rounded


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
