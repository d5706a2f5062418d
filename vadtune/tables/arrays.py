"""Tables as numpy arrays: npy and npz files, read by their headers and in blocks of rows."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.files import NOT_ARRAYS
from vadtune.core.reading import check_archive, open_regular
from vadtune.core.text import one_line
from vadtune.tables.base import (
    Cells,
    Fill,
    NotNumericError,
    TableFile,
    as_type,
    check_columns_count,
    listed,
    rows_of_block,
)

_NPY, _ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")


class _Header(NamedTuple):
    """What the header of an npy file says of its array.

    Attributes:
        shape: Shape of the array.
        by_columns: Whether the array is stored column by column (Fortran's order).
        dtype: Type of its cells.
        start: Position of its first cell.
    """

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]
    start: int

    @classmethod
    def read(cls, file: IO[bytes]) -> _Header:
        """Reads the header of a file that is at its start.

        Raises:
            ValueError: It is no npy file, or its array holds Python objects.
        """
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version[0]}.{version[1]} of the format is for arrays with named fields")
        shape, by_columns, dtype = readers[version](file)
        if dtype.hasobject:
            raise ValueError("pickle")
        return cls(shape, by_columns and len(shape) > 1, dtype, file.tell())

    def write(self, file: IO[bytes]) -> None:
        """Writes the header."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        described = {"descr": descr, "fortran_order": self.by_columns, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, described)

    def check_size(self, there: int) -> None:
        """Raises ValueError if the array has more cells than so many bytes from the start of the file can hold."""
        needed = self.start + math.prod(self.shape) * self.dtype.itemsize
        if needed > there or min(self.shape, default=0) < 0:
            raise ValueError(f"an array of shape {self.shape} needs {needed} bytes, got {there}")


class NpyFile(TableFile):
    """An array of numbers (n, d) in an npy file; its columns have no names."""

    def __init__(self, path: Path) -> None:
        self.path, self.named = path, False
        with open_regular(path) as file:
            magic = file.read(len(_NPY))
            if magic.startswith(_ZIP):
                raise DataError("must hold one array, and is an archive of arrays; name it .npz")
            file.seek(0)
            with _reported():
                if magic != _NPY:
                    raise ValueError("pickle" if magic else "it is empty")
                self._header = _Header.read(file)
                self._header.check_size(path.stat().st_size)
        self._take_shape()

    def blocks(self, columns: Sequence[int], cells: Cells) -> Iterator[np.ndarray]:
        """See TableFile."""
        for block in self._raw_blocks(rows_of_block(len(self.names))):
            yield self._numbers(block, columns, cells)

    def copy_filled(self, out: Path, columns: Sequence[int], cells: Cells, fill: Fill) -> None:
        """See TableFile; values are rounded in arrays of whole numbers."""
        with out.open("wb") as file:
            self._header.write(file)
            start, first = file.tell(), 0
            for block in self._filled_blocks(columns, cells, fill):
                if self._header.by_columns:
                    for j, column in enumerate(block.T):
                        file.seek(start + (j * self.rows + first) * block.itemsize)
                        file.write(np.ascontiguousarray(column).data)
                else:
                    file.write(np.ascontiguousarray(block).data)
                first += len(block)

    def _take_shape(self) -> None:
        if len(self._header.shape) != 2:
            raise DataError(f"must be an array of rows and columns, got shape {self._header.shape}; reshape it")
        self.rows, d = self._header.shape
        check_columns_count(d)
        self.names = [f"x{j}" for j in range(d)]

    def _filled_blocks(self, columns: Sequence[int], cells: Cells, fill: Fill) -> Iterator[np.ndarray]:
        table_order = np.argsort(columns)
        for block in self._raw_blocks(rows_of_block(len(columns))):
            x_nan = self._numbers(block, columns, cells)
            x, missing = fill(x_nan)[:, table_order], np.isnan(x_nan)[:, table_order]
            block[missing] = as_type(x[missing], block.dtype)
            yield block

    def _raw_blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Yields the array in blocks of rows, of its own type; at least one, which may be empty."""
        with open_regular(self.path) as file:
            for first in range(0, max(self.rows, 1), rows):
                with _reported():
                    block = self._read_rows(file, first, min(rows, self.rows - first))
                yield block

    def _read_rows(self, file: IO[bytes], first: int, count: int) -> np.ndarray:
        header, d = self._header, len(self.names)
        size = header.dtype.itemsize
        if not header.by_columns:
            file.seek(header.start + first * d * size)
            return _cells(file, header.dtype, count * d).reshape(count, d)
        block = np.empty((count, d), header.dtype)
        for j in range(d):
            file.seek(header.start + (j * self.rows + first) * size)
            block[:, j] = _cells(file, header.dtype, count)
        return block

    def _numbers(self, block: np.ndarray, columns: Sequence[int], cells: Cells) -> np.ndarray:
        if block.dtype.kind not in cells.kinds:
            first = block[0] if len(block) else [""] * len(self.names)
            raise NotNumericError({self.names[index]: (str(first[index]), 0) for index in columns})
        return cells.of(block if list(columns) == list(range(len(self.names))) else block[:, list(columns)])


class NpzFile(NpyFile):
    """An array of numbers (n, d) in an npz file: the one named ``x``, or the only one with two axes.

    An array named ``columns`` names its columns. An array stored column by column is read as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            if file.read(len(_NPY)) == _NPY:
                raise DataError("must be an archive of arrays, and holds one bare array; name it .npy")
        headers: dict[str, _Header] = {}
        with _reported(), zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as file:
                        header = _Header.read(file)
                    header.check_size(archive.getinfo(member).file_size)
                    headers[member.removesuffix(".npy")] = header
        tables = [name for name, header in headers.items() if len(header.shape) == 2]
        if "x" not in headers and len(tables) != 1:
            raise DataError(f"needs an array named x, got {listed(headers) or 'none'}; rename the table to x")
        self._member = "x.npy" if "x" in headers else f"{tables[0]}.npy"
        self._header = headers[self._member.removesuffix(".npy")]
        self._take_shape()
        self.named = "columns" in headers
        if self.named:
            with _reported(), np.load(path, allow_pickle=False) as arrays:
                if arrays["columns"].dtype.kind != "U":
                    raise ValueError("columns must hold texts")
                self.names = list(map(str, arrays["columns"].ravel()))
            if len(self.names) != self._header.shape[1]:
                raise DataError(
                    f"needs one name per column, got {len(self.names)} names for {self._header.shape[1]} columns"
                )

    def copy_filled(self, out: Path, columns: Sequence[int], cells: Cells, fill: Fill) -> None:
        """See TableFile; other arrays are kept."""
        with zipfile.ZipFile(self.path) as source, zipfile.ZipFile(out, "w") as archive:
            for member in source.namelist():
                with archive.open(member, "w", force_zip64=True) as file:
                    if member != self._member:
                        with _reported(), source.open(member) as other:
                            shutil.copyfileobj(other, file)
                    else:
                        self._header.write(file)
                        blocks = self._filled_blocks(columns, cells, fill)
                        for block in [np.concatenate(list(blocks)).T] if self._header.by_columns else blocks:
                            file.write(np.ascontiguousarray(block).data)

    def _raw_blocks(self, rows: int) -> Iterator[np.ndarray]:
        """See NpyFile."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as file:
            with _reported():
                header = _Header.read(file)
                whole = None
                if header.by_columns:
                    whole = _cells(file, header.dtype, self.rows * len(self.names)).reshape(header.shape, order="F")
            for first in range(0, max(self.rows, 1), rows):
                count = min(rows, self.rows - first)
                with _reported():
                    if whole is None:
                        block = _cells(file, header.dtype, count * len(self.names)).reshape(count, len(self.names))
                    else:
                        block = np.ascontiguousarray(whole[first : first + count])
                yield block


def _cells(file: IO[bytes], dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Reads the next ``count`` cells of a file, as an array that may be written to.

    Raises:
        ValueError: The file ends before.
    """
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError(f"it ends after {len(content)} of {count * dtype.itemsize} bytes")
    return np.frombuffer(bytearray(content), dtype)


@contextmanager
def _reported() -> Iterator[None]:
    """Reports what numpy and zipfile raise on damaged files as a DataError."""
    try:
        yield
    except NOT_ARRAYS as error:
        reason = one_line(" ".join(str(error).split()), 300)
        if "pickle" in reason:
            reason = "it holds pickled objects, which could execute code"
        raise DataError(f"cannot be read as numpy arrays ({reason}); save plain numbers with numpy") from error
