"""What all kinds of table files have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.text import one_line, quoted

MOST_COLUMNS = 50_000
_MOST_NAMED, _SHOWN = 20, 60  # columns in a message, and characters of a name
_WORDS = {"true": 1.0, "false": 0.0}

Fill = Callable[[np.ndarray], np.ndarray]
"""Maps rows (b, d), float64 with NaN where missing, to complete rows; called for one block of rows after the other."""


class TableFile(ABC):
    """A table file that is read, and copied with its missing cells filled, in blocks of rows.

    Its memory does not grow with the number of rows, except in ``numbers``, whose result does.

    Attributes:
        path: The file.
        names: One name per column; those of an array without names are x0, x1, ...
        named: Whether the file names its columns.
        rows: Number of rows; an estimate for text files.
    """

    names: list[str]
    rows: int
    named: bool = True

    @abstractmethod
    def __init__(self, path: Path) -> None:
        """Reads the names of the columns.

        Raises:
            DataError: It is no table of this kind.
            OSError: It cannot be opened.
        """

    @abstractmethod
    def blocks(self, columns: Sequence[int], cells: Cells) -> Iterator[np.ndarray]:
        """Yields the columns with these indices, some rows at a time, as float64 (b, d), NaN where missing.

        Raises:
            DataError: The file is damaged, or rows differ in length.
            NotNumericError: Columns hold something else than numbers.
        """

    @abstractmethod
    def copy_filled(self, out: Path, columns: Sequence[int], cells: Cells, fill: Fill) -> None:
        """Writes a copy of the table, with its missing cells filled and all else unchanged.

        Args:
            out: Where to write.
            columns: The indices of all columns, in the order that ``fill`` expects.
            cells: As for ``blocks``.
            fill: Fills a block of rows.

        Raises:
            DataError: As for ``blocks``, or from ``fill``.
            OSError: The copy cannot be written.
        """

    def numbers(self, columns: Sequence[int], cells: Cells) -> np.ndarray:
        """Returns the columns with these indices as float64 (n, d), NaN where missing; raises as ``blocks`` does."""
        d, n = len(columns), 0
        x = np.empty((self.rows, d))
        for block in self.blocks(columns, cells):
            end = n + len(block)
            if end > len(x):
                x.resize((end + len(x) // 20, d), refcheck=False)  # in place for large arrays
            x[n:end] = block
            n = end
        x.resize((n, d), refcheck=False)
        return x


class NotNumericError(DataError):
    """Columns that are not numeric.

    Attributes:
        others: Column name -> its first value that is not a number, and the row of that.
    """

    def __init__(self, others: dict[str, tuple[str, int]]) -> None:
        self.others = others
        name, (text, row) = next(iter(others.items()))
        example = f"{one_line(name, _SHOWN)} holds {quoted(text)} in row {row + 1}"
        super().__init__(
            f"columns must be numeric, got {listed(others)} ({example}); list texts of missing cells in na_values"
        )

    def __reduce__(self) -> tuple[type[NotNumericError], tuple[dict[str, tuple[str, int]]]]:
        return type(self), (self.others,)


def check_columns_count(count: int) -> None:
    """Raises DataError if a table has more columns than a model can have."""
    if count > MOST_COLUMNS:
        raise DataError(
            f"has at most {MOST_COLUMNS:,} columns, got {count:,}; leave some out, or swap rows and columns"
        )


def listed(names: Collection[str]) -> str:
    """Returns names of columns as messages list them: some of them, shortened."""
    first = [one_line(name, _SHOWN) for name in islice(names, _MOST_NAMED)]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more


class Cells:
    """Converts cells to numbers.

    Args:
        na_values: Texts that mark a missing cell, in addition to an empty cell and NaN; a text that is a number also
            marks that number.
        booleans: Whether true and false are read as 1 and 0, as in masks; they are errors otherwise.

    Attributes:
        texts: Texts of missing cells, including the empty one.
    """

    def __init__(self, na_values: Collection[str] = (), *, booleans: bool = False) -> None:
        self.texts = {"", *(text.strip() for text in na_values)}
        self._missing = [value for text in self.texts if (value := _float(text)) is not None]
        self.kinds = "fiub" if booleans else "fiu"

    def number(self, text: str) -> float:
        """Converts a text to a number, NaN if missing; raises ValueError for anything else."""
        if text in self.texts:
            return math.nan
        if "b" in self.kinds and text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if "_" in text or not text.isascii():  # 1_000 and digits of other alphabets are numbers to Python only
            raise ValueError
        value = float(text)
        return math.nan if value in self._missing else value

    def of(self, array: np.ndarray) -> np.ndarray:
        """Converts an array of one of ``kinds`` to float64, NaN where missing; may return the array itself."""
        x = array.astype(np.float64, copy=bool(self._missing))
        for value in self._missing:
            x[x == value] = np.nan
        return x


def as_type(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Converts values to a numeric type; to whole numbers by rounding and clipping to the range of the type."""
    if dtype.kind == "f":
        return x.astype(dtype)
    rounded: np.ndarray = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    return rounded


def rows_of_block(columns: int) -> int:
    """Returns the number of rows to fill at once: many, since models infer many rows faster."""
    return max(1, BLOCK_CELLS // max(columns, 1))


BLOCK_CELLS = 2**21  # 16 MiB of float64


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
