"""Tables of the user's with holes: read as numbers, and written back with nothing changed but the holes.

A table is kept as it came: the text of a CSV, the columns of a Parquet file, the arrays of an npy or npz file. Filling
it replaces the holes in that, so that observed cells stay byte for byte what they were. Reading one executes nothing.

To add a kind of file: a class in a module here, one line in TABLES.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from vadtune.core.errors import DataError, unknown_name
from vadtune.tables.base import Cells, NotNumericError, TableFile
from vadtune.tables.binary import NpyFile, NpzFile, ParquetFile
from vadtune.tables.text import CsvFile, TsvFile

__all__ = ["TABLES", "Cells", "Table", "TableFile", "check_columns", "open_table", "read_table"]

_MOST_NAMED = 5

TABLES: dict[str, type[TableFile]] = {
    ".csv": CsvFile,
    ".tsv": TsvFile,
    ".parquet": ParquetFile,
    ".npy": NpyFile,
    ".npz": NpzFile,
}


class Table(NamedTuple):
    """Numeric columns with holes.

    Attributes:
        x: float64 (n, d), NaN in holes.
        names: One name per column.
    """

    x: np.ndarray
    names: list[str]


def open_table(path: Path) -> TableFile:
    """Returns a table by the ending of its name.

    Raises:
        DataError: It cannot be read, or its kind is unknown.
    """
    kind = TABLES.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: takes a file that ends in {', '.join(TABLES)}, got '{path.suffix}'; convert it")
    try:
        return kind(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an existing table") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_table(
    path: Path, columns: Sequence[str] | None = None, na_values: Collection[str] = (), *, booleans: bool = False
) -> Table:
    """Reads a table of numbers.

    A hole is an empty cell, NaN or a null. An npz file holds an array (n, d) called ``x``, or only one, and may name
    its columns in one called ``columns``; the columns of other arrays are called x0, x1, ...

    Args:
        path: A file that ends as one of TABLES.
        columns: The columns to take, in this order; None for all of them.
        na_values: What else stands for a hole: texts as in a CSV file, or numbers.
        booleans: Whether true and false may stand for 1 and 0.

    Raises:
        DataError: It cannot be read, a column is not there, there twice, or not numeric.
    """
    table = open_table(path)
    taken = table.names if columns is None else list(columns)
    for name in taken:
        if name not in table.names:
            raise DataError(f"{path}: {unknown_name('column', name, table.names)}")
        if table.names.count(name) > 1:
            raise DataError(f"{path}: columns need names of their own, got '{name}' twice; rename one")
    if not taken:
        raise DataError(f"{path}: a table needs at least one column, got none; name another")
    places = [table.names.index(name) for name in taken]
    try:
        return Table(table.numbers(places, Cells(na_values, booleans=booleans)), taken)
    except NotNumericError as error:
        numeric = [name for name in taken if name not in error.others]
        proposed = yaml.safe_dump(numeric, default_flow_style=True, width=math.inf, allow_unicode=True).strip()
        raise DataError(f"{path}: {error}, or leave them out with columns: {proposed}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def check_columns(path: Path, table: TableFile, expected: Collection[str]) -> list[int]:
    """Returns where in the table each expected column stands.

    Raises:
        DataError: Columns are missing, extra or named twice.
    """
    if not table.named:
        if len(table.names) != len(expected):
            raise DataError(
                f"{path}: must have the {len(expected)} columns of the model ({_listed(expected)}), "
                f"got {len(table.names)}; bring it into that shape"
            )
        return list(range(len(expected)))
    twice = sorted({name for name in table.names if table.names.count(name) > 1})
    missing = [name for name in expected if name not in table.names]
    extra = [name for name in table.names if name not in expected]
    found = [
        f"{what} {_listed(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("twice", twice))
        if names
    ]
    if found:
        raise DataError(f"{path}: must have the columns of the model, got {'; '.join(found)}; add or leave out those")
    return [table.names.index(name) for name in expected]


def _listed(names: Collection[str]) -> str:
    first = [f"'{name}'" for name in list(names)[:_MOST_NAMED]]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
