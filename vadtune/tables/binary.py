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

    def numbers(self, places: Sequence[int], cells: Cells) -> np.ndarray:
        """Returns float64 (n, d). See TableFile."""
        others: dict[str, tuple[str, int]] = {}
        x = np.full((len(self._table), len(places)), np.nan)
        for i, place in enumerate(places):
            column = self._table.column(place)
            if column.null_count == len(column):  # of whatever type: that it is empty is for the caller to say
                continue
            if column.type in _arrow_types(cells.kinds):
                x[:, i] = cells.of(column.to_numpy())
            else:
                row = int(np.flatnonzero(column.is_valid())[0])
                others[self.names[place]] = str(column[row].as_py()), row
        if others:
            raise NotNumericError(others)
        return x

    def filled(self, x: np.ndarray, holes: np.ndarray) -> bytes:
        """Returns a Parquet file; in columns of whole numbers the values are rounded."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import parquet

        table = self._table
        for j, field in enumerate(table.schema):
            if holes[:, j].any():
                given = table.column(j)
                if field.type not in _arrow_types("fiu"):  # a column without a value, which may have any type
                    field = field.with_type(pa.float64())
                    given = pa.nulls(len(given), field.type)
                values = as_type(np.where(holes[:, j], x[:, j], 0.0), np.dtype(field.type.to_pandas_dtype()))
                merged = pc.if_else(pa.array(holes[:, j]), pa.array(values, field.type), given)
                table = table.set_column(j, field, merged)
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()


class NpyFile(TableFile):
    """One array of numbers (n, d) in an npy file; its columns have no names."""

    named = False

    def __init__(self, content: bytes) -> None:
        array = _load(content)
        if not isinstance(array, np.ndarray):
            raise DataError("must hold one array, and is an archive of arrays; name it .npz")
        self._array = _two_axes(array)
        self.names = _places(self._array)

    def numbers(self, places: Sequence[int], cells: Cells) -> np.ndarray:
        """Returns float64 (n, d). See TableFile."""
        return _numbers(self._array, self.names, places, cells)

    def filled(self, x: np.ndarray, holes: np.ndarray) -> bytes:
        """Returns an npy file of the same type; whole numbers are rounded."""
        buffer = io.BytesIO()
        np.save(buffer, _merged(self._array, x, holes))
        return buffer.getvalue()


class NpzFile(TableFile):
    """An array of numbers (n, d) in an npz file: ``x``, or the only one of two axes; ``columns`` may name its
    columns."""

    def __init__(self, content: bytes) -> None:
        archive = _load(content)
        if isinstance(archive, np.ndarray):
            raise DataError("must be an archive of arrays, and holds one bare array; name it .npy")
        self._arrays = archive
        tables = [key for key, array in archive.items() if array.ndim == 2]
        if "x" not in archive and len(tables) != 1:
            raise DataError(f"needs an array named x, got {', '.join(archive) or 'none'}; rename the table to x")
        self._key = "x" if "x" in archive else tables[0]
        self.named = "columns" in archive
        array = _two_axes(archive[self._key])
        self.names = list(map(str, archive["columns"].ravel())) if self.named else _places(array)
        if len(self.names) != array.shape[1]:
            raise DataError(f"needs a name for each column, got {len(self.names)} names for {array.shape[1]} columns")

    def numbers(self, places: Sequence[int], cells: Cells) -> np.ndarray:
        """Returns float64 (n, d). See TableFile."""
        return _numbers(self._arrays[self._key], self.names, places, cells)

    def filled(self, x: np.ndarray, holes: np.ndarray) -> bytes:
        """Returns an npz file with the other arrays as they were; whole numbers are rounded."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {**self._arrays, self._key: _merged(self._arrays[self._key], x, holes)}
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def _arrow_types(kinds: str) -> list[Any]:
    import pyarrow as pa

    by_kind = {
        "f": [pa.float16(), pa.float32(), pa.float64()],
        "i": [pa.int8(), pa.int16(), pa.int32(), pa.int64()],
        "u": [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()],
        "b": [pa.bool_()],
    }
    return [kind for letter in kinds for kind in by_kind[letter]]


def _load(content: bytes) -> Any:
    """Returns the array of an npy file, or the arrays of an npz file by name."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except NOT_ARRAYS as error:
        reason = " ".join(str(error).split())
        if "pickle" in reason:
            reason = "it holds pickled objects, which could execute code"
        raise DataError(f"cannot be read as numpy arrays ({reason}); save plain numbers with numpy") from error


def _two_axes(array: np.ndarray) -> np.ndarray:
    if array.ndim != 2:
        raise DataError(f"must be an array of rows and columns, got shape {array.shape}; bring it into that shape")
    return array


def _places(array: np.ndarray) -> list[str]:
    return [f"x{j}" for j in range(array.shape[1])]


def _numbers(array: np.ndarray, names: list[str], places: Sequence[int], cells: Cells) -> np.ndarray:
    chosen = array[:, list(places)]
    if chosen.dtype.kind in cells.kinds:
        return cells.of(chosen)
    raise NotNumericError({names[place]: (str(array[0, place]) if len(array) else "", 0) for place in places})


def _merged(array: np.ndarray, x: np.ndarray, holes: np.ndarray) -> np.ndarray:
    merged: np.ndarray = array.copy(order="K")
    merged[holes] = as_type(x[holes], array.dtype)
    return merged
