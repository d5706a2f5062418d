"""Tables as arrays: Parquet, npy and npz files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.files import NOT_ARRAYS
from vadtune.tables.base import Cells, NotNumericError, TableFile, as_type


class ParquetFile(TableFile):
    """A Parquet file; types, null bits and metadata are kept."""

    def __init__(self, content: bytes) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            self._table = parquet.read_table(io.BytesIO(content)).combine_chunks()
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"cannot be read as Parquet ({reason}); name a Parquet file") from error
        self.names = list(self._table.column_names)

    def numbers(self, columns: Sequence[int], cells: Cells) -> np.ndarray:
        """See TableFile."""
        others: dict[str, tuple[str, int]] = {}
        x = np.full((len(self._table), len(columns)), np.nan)
        for i, index in enumerate(columns):
            column = self._table.column(index)
            if column.null_count == len(column):  # of any type; the caller reports empty columns
                continue
            if column.type in _arrow_types(cells.kinds):
                x[:, i] = cells.of(column.to_numpy())
            else:
                row = int(np.flatnonzero(column.is_valid())[0])
                others[self.names[index]] = str(column[row].as_py()), row
        if others:
            raise NotNumericError(others)
        return x

    def filled(self, x: np.ndarray, missing: np.ndarray) -> bytes:
        """Returns the file's bytes with missing cells filled, rounded in whole-number arrays. See TableFile."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import parquet

        table = self._table
        for j, field in enumerate(table.schema):
            if missing[:, j].any():
                column = table.column(j)
                if field.type not in _arrow_types("fiu"):  # a column without values, which may have any type
                    field = field.with_type(pa.float64())
                    column = pa.nulls(len(column), field.type)
                values = as_type(np.where(missing[:, j], x[:, j], 0.0), np.dtype(field.type.to_pandas_dtype()))
                merged = pc.if_else(pa.array(missing[:, j]), pa.array(values, field.type), column)
                table = table.set_column(j, field, merged)
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()


class NpyFile(TableFile):
    """An array of numbers (n, d) in an npy file; its columns have no names."""

    archive = False

    def __init__(self, content: bytes) -> None:
        loaded = _load(content)
        if isinstance(loaded, np.ndarray) and self.archive:
            raise DataError("must be an archive of arrays, and holds one bare array; name it .npy")
        if not isinstance(loaded, np.ndarray) and not self.archive:
            raise DataError("must hold one array, and is an archive of arrays; name it .npz")
        self._others: dict[str, np.ndarray] | None = None  # of an npz file: all arrays
        self._key = "x"
        if isinstance(loaded, np.ndarray):
            self._array = loaded
        else:
            tables = [key for key, array in loaded.items() if array.ndim == 2]
            if "x" not in loaded and len(tables) != 1:
                raise DataError(f"needs an array named x, got {', '.join(loaded) or 'none'}; rename the table to x")
            self._key = "x" if "x" in loaded else tables[0]
            self._others, self._array = loaded, loaded[self._key]
        if self._array.ndim != 2:
            raise DataError(f"must be an array of rows and columns, got shape {self._array.shape}; reshape it")
        self.names = [f"x{j}" for j in range(self._array.shape[1])]
        self.named = self._others is not None and "columns" in self._others
        if self._others is not None and self.named:
            self.names = list(map(str, self._others["columns"].ravel()))
            if len(self.names) != self._array.shape[1]:
                raise DataError(
                    f"needs one name per column, got {len(self.names)} names for {self._array.shape[1]} columns"
                )

    def numbers(self, columns: Sequence[int], cells: Cells) -> np.ndarray:
        """See TableFile."""
        chosen = self._array[:, list(columns)]
        if chosen.dtype.kind in cells.kinds:
            return cells.of(chosen)
        first = self._array[0] if len(self._array) else [""] * len(self.names)
        raise NotNumericError({self.names[index]: (str(first[index]), 0) for index in columns})

    def filled(self, x: np.ndarray, missing: np.ndarray) -> bytes:
        """See TableFile; values are rounded in arrays of whole numbers, and other arrays of an npz file are kept."""
        merged = self._array.copy(order="K")
        merged[missing] = as_type(x[missing], merged.dtype)
        buffer = io.BytesIO()
        if self._others is None:
            np.save(buffer, merged)
        else:
            arrays: dict[str, Any] = {**self._others, self._key: merged}
            np.savez(buffer, **arrays)
        return buffer.getvalue()


class NpzFile(NpyFile):
    """An array of numbers (n, d) in an npz file: the one named ``x``, or the only one with two axes.

    An array named ``columns`` names its columns.
    """

    archive = True


def _arrow_types(kinds: str) -> list[Any]:
    import pyarrow as pa

    by_kind = {
        "f": [pa.float16(), pa.float32(), pa.float64()],
        "i": [pa.int8(), pa.int16(), pa.int32(), pa.int64()],
        "u": [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()],
        "b": [pa.bool_()],
    }
    return [kind for letter in kinds for kind in by_kind[letter]]


def _load(content: bytes) -> np.ndarray | dict[str, np.ndarray]:
    """Returns the array of an npy file, or the arrays of an npz file by name."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except NOT_ARRAYS as error:
        reason = " ".join(str(error).split())
        if "pickle" in reason:
            reason = "it holds pickled objects, which could execute code"
        raise DataError(f"cannot be read as numpy arrays ({reason}); save plain numbers with numpy") from error
