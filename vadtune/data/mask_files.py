"""Masks in files of the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vadtune.core.errors import DataError
from vadtune.tables import read_table


def read_mask(path: Path, shape: tuple[int, ...], names: Sequence[str]) -> np.ndarray:
    """Reads a mask file: a table of 1 or true (observed) and 0 or false (missing), one row per row of the data.

    Args:
        path: As for ``read_table``.
        shape: Shape of the data (n, d).
        names: Columns of the data. A file with column names must have the same ones, in any order.

    Returns:
        bool (n, d), True = observed.

    Raises:
        DataError: The file cannot be read, or has another shape or other values.
    """
    columns = None if path.suffix.lower() in (".npy", ".npz") else names
    return as_mask(read_table(path, columns, booleans=True).x, shape, str(path))


def as_mask(values: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Converts zeros and ones to a mask, bool, True = observed.

    Args:
        values: Numbers.
        shape: The expected shape.
        where: What the error message starts with.

    Raises:
        DataError: The shape differs, or a value is neither 0 nor 1.
    """
    if values.shape != shape:
        raise DataError(f"{where}: a mask of shape {shape} is needed, as the data has, got {values.shape}")
    strange = values[~np.isin(values, (0, 1))]
    if strange.size:
        raise DataError(f"{where}: a mask holds 1 (observed) and 0 (missing) only, got {strange.flat[0]:g}")
    return values.astype(bool)
