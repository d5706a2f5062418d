"""Tables as arrays: Parquet, npy and npz files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from typing import Any

import numpy as np

from vadtune.errors import DataError
from vadtune.table_files.base import Holes, Table


class ParquetTable(Table):
    """A Parquet file; types, null bits of other columns and metadata are kept."""

    def __init__(self, content: bytes, na_values: Collection[str]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            self._table = parquet.read_table(io.BytesIO(content)).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot be read as Parquet ({str(error).splitlines()[0]}); name a Parquet file") from error
        self.names = list(self._table.column_names)
        types = pa.types
        for field in self._table.schema:
            if not (types.is_floating(field.type) or types.is_integer(field.type)):
                raise DataError(f"columns must be numeric, but '{field.name}' is {field.type}; leave it out")
        columns = [column.to_numpy().astype(np.float64) for column in self._table.columns]
        self.x = np.stack(columns, axis=1) if columns else np.empty((len(self._table), 0))
        self.x[Holes(na_values).among(self.x)] = np.nan

    def filled(self, x: np.ndarray) -> bytes:
        """Returns a Parquet file; in columns of whole numbers the values are rounded."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import parquet

        table = self._table
        for j, field in enumerate(table.schema):
            holes = self.holes[:, j]
            if holes.any():
                values = _as_type(np.where(holes, x[:, j], 0.0), np.dtype(field.type.to_pandas_dtype()))
                merged = pc.if_else(pa.array(holes), pa.array(values, field.type), table.column(j))
                table = table.set_column(j, field, merged)
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()


class NpyTable(Table):
    """One array of numbers (n, d) in an npy file; its columns have no names."""

    def __init__(self, content: bytes, na_values: Collection[str]) -> None:
        self.names = None
        self._array = _load(content)
        if not isinstance(self._array, np.ndarray):
            raise DataError("must hold one array, and is an archive of arrays; name it .npz")
        self.x = _numbers(self._array, na_values)

    def filled(self, x: np.ndarray) -> bytes:
        """Returns an npy file of the same type; whole numbers are rounded."""
        buffer = io.BytesIO()
        np.save(buffer, _merged(self._array, x, self.holes))
        return buffer.getvalue()


class NpzTable(Table):
    """An array of numbers (n, d) in an npz file: ``x``, or the only one of two axes; ``columns`` may name its
    columns."""

    def __init__(self, content: bytes, na_values: Collection[str]) -> None:
        archive = _load(content)
        if isinstance(archive, np.ndarray):
            raise DataError("must be an archive of arrays, and holds one bare array; name it .npy")
        self._arrays = archive
        tables = [key for key, array in archive.items() if array.ndim == 2]
        if "x" not in archive and len(tables) != 1:
            raise DataError(f"needs an array named x, got {', '.join(archive) or 'none'}; rename the table to x")
        self._key = "x" if "x" in archive else tables[0]
        self.names = list(map(str, archive["columns"].ravel())) if "columns" in archive else None
        self.x = _numbers(archive[self._key], na_values)
        if self.names is not None and len(self.names) != self.x.shape[1]:
            raise DataError(f"needs a name for each column, got {len(self.names)} names for {self.x.shape[1]} columns")

    def filled(self, x: np.ndarray) -> bytes:
        """Returns an npz file with the other arrays as they were; whole numbers are rounded."""
        buffer = io.BytesIO()
        merged = _merged(self._arrays[self._key], x, self.holes)
        arrays: dict[str, Any] = {**self._arrays, self._key: merged}
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def _load(content: bytes) -> Any:
    """Returns the array of an npy file, or the arrays of an npz file by name."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read as numpy arrays ({error}); save plain numbers with numpy") from error


def _numbers(array: np.ndarray, na_values: Collection[str]) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise DataError(f"must be a table of numbers (rows, columns), got {array.dtype} of shape {array.shape}")
    x = array.astype(np.float64)
    x[Holes(na_values).among(x)] = np.nan
    return x


def _merged(array: np.ndarray, x: np.ndarray, holes: np.ndarray) -> np.ndarray:
    merged: np.ndarray = array.copy(order="K")
    merged[holes] = _as_type(x[holes], array.dtype)
    return merged


def _as_type(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Returns values in a type of numbers: rounded, and no further than it reaches, where that is whole numbers."""
    if dtype.kind == "f":
        return x.astype(dtype)
    rounded: np.ndarray = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    return rounded
