"""The user's tables: read as numbers, and written back with missing cells filled and all else unchanged.

Files are read and filled in blocks of rows. Filling replaces missing cells in the original form, the text of a CSV or
the columns of a Parquet file, so observed cells stay the same byte for byte. Reading executes nothing.

To add a kind of file: a class in a module here, one line in TABLES. May import core.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from vadtune.core.errors import DataError, unknown_name
from vadtune.core.memory import check_memory
from vadtune.core.reading import check_regular
from vadtune.core.text import quoted
from vadtune.tables.arrays import NpyFile, NpzFile
from vadtune.tables.base import MOST_COLUMNS, Cells, NotNumericError, TableFile, check_columns_count
from vadtune.tables.parquet import ParquetFile
from vadtune.tables.text import CsvFile, TsvFile

__all__ = ["MOST_COLUMNS", "TABLES", "Cells", "Table", "TableFile", "check_columns", "open_table", "read_table"]

_MAX_NAMED = 5
_MOST_PROPOSED = 100
_BYTES_PER_CELL = 14  # 8 as read, and 4 + 1 + 1 for the rows and masks that a dataset makes of them

TABLES: dict[str, type[TableFile]] = {
    ".csv": CsvFile,
    ".tsv": TsvFile,
    ".parquet": ParquetFile,
    ".npy": NpyFile,
    ".npz": NpzFile,
}


class Table(NamedTuple):
    """Numeric columns with missing cells.

    Attributes:
        x: float64 (n, d), NaN where missing.
        names: One name per column.
    """

    x: np.ndarray
    names: list[str]


def open_table(path: Path) -> TableFile:
    """Opens a table file; its extension names its kind.

    Raises:
        DataError: It cannot be read, or has an unknown extension.
    """
    kind = TABLES.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: takes a file that ends in {', '.join(TABLES)}, got '{path.suffix}'; convert it")
    try:
        check_regular(path)
        table = kind(path)
        check_columns_count(len(table.names))
        return table
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an existing table") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_table(
    path: Path, columns: Sequence[str] | None = None, na_values: Collection[str] = (), *, booleans: bool = False
) -> Table:
    """Reads a table of numbers.

    Empty cells, NaN and nulls are missing. An npz file holds an array (n, d) named ``x``, or only one, and may name its
    columns in one named ``columns``; columns of other arrays are named x0, x1, ...

    Args:
        path: A file with one of the extensions in TABLES.
        columns: The columns to read, in this order; None for all.
        na_values: Further texts, as in a CSV file, that mark missing cells.
        booleans: Whether true and false are read as 1 and 0.

    Raises:
        DataError: The file cannot be read, or a column is absent, duplicate or not numeric.
    """
    table = open_table(path)
    taken = table.names if columns is None else list(columns)
    index_of, counts = {name: index for index, name in enumerate(table.names)}, Counter(table.names)
    for name in taken:
        if name not in counts and len(table.names) == 1:
            raise DataError(f"{path}: has one column, which is not {quoted(name)}; name a table with several columns")
        if name not in counts:
            raise DataError(f"{path}: {unknown_name('column', name, table.names)}")
        if counts[name] > 1:
            raise DataError(f"{path}: column names must be unique, got {quoted(name)} twice; rename one")
    if not taken:
        raise DataError(f"{path}: a table needs at least one column, got none; name another")
    check_memory(
        _BYTES_PER_CELL * table.rows * len(taken),
        f"{path}: reading {table.rows:,} rows of {len(taken)} columns",
        "name fewer columns in data.columns, split the table, or take a larger machine",
    )
    indices = [index_of[name] for name in taken]
    try:
        return Table(table.numbers(indices, Cells(na_values, booleans=booleans)), taken)
    except NotNumericError as error:
        numeric = [name for name in taken if name not in error.others]
        if columns is None and not numeric:  # perhaps no table at all, whose content is not repeated
            raise DataError(f"{path}: needs columns of numbers, got none; name a table that has some") from None
        if len(numeric) > _MOST_PROPOSED:
            raise DataError(f"{path}: {error}, or name the others in data.columns") from error
        proposed = yaml.safe_dump(numeric, default_flow_style=True, width=math.inf, allow_unicode=True).strip()
        raise DataError(f"{path}: {error}, or leave them out with columns: {proposed}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def check_columns(path: Path, table: TableFile, expected: Collection[str]) -> list[int]:
    """Returns the index in the table of each expected column.

    Raises:
        DataError: Columns are missing, extra or duplicate.
    """
    if not table.named:
        if len(table.names) != len(expected):
            raise DataError(
                f"{path}: must have the {len(expected)} columns of the model ({_listed(expected)}), "
                f"got {len(table.names)}; reshape it"
            )
        return list(range(len(expected)))
    counts, known = Counter(table.names), set(expected)
    twice = sorted(name for name, count in counts.items() if count > 1)
    missing = [name for name in expected if name not in counts]
    extra = [name for name in table.names if name not in known]
    if (
        isinstance(table, CsvFile) and len(table.names) == 1 and len(known) > 1
    ):  # perhaps no table at all, whose content is not repeated
        raise DataError(f"{path}: must have the {len(known)} columns of the model, got one; name a table of these")
    found = [
        f"{what} {_listed(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("twice", twice))
        if names
    ]
    if found:
        raise DataError(f"{path}: must have the columns of the model, got {'; '.join(found)}; add or leave out those")
    index_of = {name: index for index, name in enumerate(table.names)}
    return [index_of[name] for name in expected]


def _listed(names: Collection[str]) -> str:
    first = [quoted(name) for name in islice(names, _MAX_NAMED)]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
