"""Tables of the user's with holes, read so that they can be written back with nothing changed but the holes.

A table is kept as it came: the text of a CSV, the columns of a Parquet file, the arrays of an npy or npz file. Filling
it replaces the holes in that, so that observed cells stay byte for byte what they were.

To add a kind of file: a class in a module here, one line in TABLES.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from vadtune.errors import DataError
from vadtune.table_files.base import Table
from vadtune.table_files.binary import NpyTable, NpzTable, ParquetTable
from vadtune.table_files.text import CsvTable, TsvTable

__all__ = ["TABLES", "Table", "check_columns", "read_table"]

_MOST_NAMED = 5

TABLES: dict[str, type[Table]] = {
    ".csv": CsvTable,
    ".tsv": TsvTable,
    ".parquet": ParquetTable,
    ".npy": NpyTable,
    ".npz": NpzTable,
}


def read_table(path: Path, na_values: Collection[str] = ()) -> Table:
    """Reads a table by the ending of its name.

    Args:
        path: The file.
        na_values: Texts that mean a hole, beside empty cells and NaN; those that are numbers count in binary files too.

    Raises:
        DataError: It cannot be read, its kind is unknown, or a cell is neither a finite number nor a hole.
    """
    if path.suffix not in TABLES:
        raise DataError(f"{path}: takes a file that ends in {', '.join(TABLES)}, got '{path.suffix}'; convert it")
    try:
        table = TABLES[path.suffix](path.read_bytes(), na_values)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an existing table") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if np.isinf(table.x).any():
        i, j = np.argwhere(np.isinf(table.x))[0]
        name = f"'{table.names[j]}'" if table.names else str(j + 1)
        raise DataError(
            f"{path}: cells must be finite numbers or empty, got {table.x[i, j]} in row {i + 1}, column {name}; "
            "empty the cell"
        )
    return table


def check_columns(path: Path, table: Table, expected: Collection[str]) -> np.ndarray:
    """Returns where in the table each expected column stands, int (d,).

    Raises:
        DataError: Columns are missing, extra or named twice.
    """
    if table.names is None:
        if table.x.shape[1] != len(expected):
            raise DataError(
                f"{path}: must have the {len(expected)} columns of the model ({_listed(expected)}), "
                f"got {table.x.shape[1]}; bring it into that shape"
            )
        return np.arange(len(expected))
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
    return np.array([table.names.index(name) for name in expected], dtype=int)


def _listed(names: Collection[str]) -> str:
    first = [f"'{name}'" for name in list(names)[:_MOST_NAMED]]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
