"""Tables from files: CSV, Parquet, npz and npy of numeric columns with holes. Reading one executes nothing."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from vadtune.config import DataConfig
from vadtune.data.source import Layout, Source
from vadtune.errors import DataError, unknown_name


class Table(NamedTuple):
    """Numeric columns with holes.

    Attributes:
        x: float64 (n, d), NaN in holes.
        names: One name per column.
    """

    x: np.ndarray
    names: list[str]


def read_table(path: Path, columns: Sequence[str] | None = None, na_values: Sequence[str] = ()) -> Table:
    """Reads a table of numbers.

    A hole is an empty cell or NaN; in Parquet also null. An npz file holds one array (n, d), or one called ``x``, and
    may name its columns in one called ``columns``; the columns of other arrays are called x0, x1, ...

    Args:
        path: A file that ends in .csv, .parquet, .npz or .npy.
        columns: The columns to take, in this order; None for all of them.
        na_values: What else stands for a hole: texts as in a CSV file, or numbers.

    Raises:
        DataError: It cannot be read, a column is not there, not numeric, empty or not finite.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: a table ends in {', '.join(_READERS)}, got '{path.suffix}'; convert it to one of them"
        )
    try:
        frame = reader(path, na_values)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; name an existing table") from error
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        if "allow_pickle" in reason or "pickled" in reason:
            reason = "it holds pickled objects, which could execute code; save plain numbers"
        raise DataError(f"{path}: cannot be read as a table: {reason}") from error
    if columns is not None:
        for name in columns:
            if name not in frame.columns:
                raise DataError(f"{path}: {unknown_name('column', name, frame.columns)}")
        frame = frame[list(columns)]
    if frame.columns.has_duplicates:
        raise DataError(
            f"{path}: columns need names of their own, got '{frame.columns[frame.columns.duplicated()][0]}' twice"
        )
    if frame.shape[1] == 0:
        raise DataError(f"{path}: a table needs at least one column, got none")
    return Table(_numbers(frame, path, na_values), [str(name) for name in frame.columns])


def read_mask(path: Path, shape: tuple[int, ...], names: Sequence[str]) -> np.ndarray:
    """Reads a mask: a table of 1 (observed) and 0 (missing), a row for each row of the data.

    Args:
        path: As for ``read_table``.
        shape: Of the data (n, d).
        names: Columns of the data, which a CSV or Parquet mask must name as well, in any order.

    Returns:
        bool (n, d), True = observed.

    Raises:
        DataError: It cannot be read, has another shape or other values.
    """
    columns = names if path.suffix.lower() in (".csv", ".parquet") else None
    return as_mask(read_table(path, columns).x, shape, str(path))


def as_mask(values: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Returns 0 and 1 as a mask, bool, True = observed.

    Args:
        values: Numbers of the given shape.
        shape: The shape that is needed.
        where: What the error message starts with.

    Raises:
        DataError: The shape is another, or a value neither 0 nor 1.
    """
    if values.shape != shape:
        raise DataError(f"{where}: a mask of shape {shape} is needed, as the data has, got {values.shape}")
    strange = values[~np.isin(values, (0, 1))]
    if strange.size:
        raise DataError(f"{where}: a mask holds 1 (observed) and 0 (missing) only, got {strange.flat[0]:g}")
    return values.astype(bool)


def load_file(config: DataConfig) -> Source:
    """Returns the user's own table.

    Raises:
        DataError: As for ``read_table``; also where the columns do not make the images or points that were promised.
    """
    assert config.path is not None
    x, names = read_table(Path(config.path), config.columns, config.na_values or ())
    if config.image is not None and config.image[0] * config.image[1] != len(names):
        height, width = config.image
        raise DataError(f"data.image: {height} x {width} images need {height * width} columns, got {len(names)}")
    if config.point_dims is not None and len(names) % config.point_dims:
        raise DataError(f"data.point_dims: points of {config.point_dims} do not fit into {len(names)} columns")
    image = None if config.image is None else (config.image[0], config.image[1])
    return Source(x, names, standardise=True, layout=Layout(image, config.point_dims))


def _read_csv(path: Path, na_values: Sequence[str]) -> pd.DataFrame:
    with warnings.catch_warnings():
        # Rows longer than the header would lose their last cells with no more than this warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            path,
            na_values=["", "NaN", "nan", *na_values],
            keep_default_na=False,
            index_col=False,
            encoding="utf-8-sig",
            low_memory=False,
        )


def _read_parquet(path: Path, na_values: Sequence[str]) -> pd.DataFrame:
    from pyarrow import parquet

    frame: pd.DataFrame = parquet.read_table(path).to_pandas(ignore_metadata=True)
    return frame


def _read_npy(path: Path, na_values: Sequence[str]) -> pd.DataFrame:
    with path.open("rb") as stream:
        return _framed(np.load(stream, allow_pickle=False), None)


def _read_npz(path: Path, na_values: Sequence[str]) -> pd.DataFrame:
    # Opened here: given a name, numpy leaves the file of a damaged archive open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = [name for name in file.files if name != "columns"]
        if len(arrays) != 1 and "x" not in arrays:
            raise ValueError(f"one array, or one called 'x', is needed, got {', '.join(arrays) or 'none'}")
        names = [str(name) for name in file["columns"].tolist()] if "columns" in file.files else None
        return _framed(file["x" if "x" in arrays else arrays[0]], names)


def _framed(array: np.ndarray, names: list[str] | None) -> pd.DataFrame:
    if array.ndim != 2:
        raise ValueError(f"an array (rows, columns) is needed, got shape {array.shape}")
    if names is not None and len(names) != array.shape[1]:
        raise ValueError(f"{array.shape[1]} columns have {len(names)} names")
    return pd.DataFrame(array, columns=names or [f"x{i}" for i in range(array.shape[1])])


_READERS: dict[str, Callable[[Path, Sequence[str]], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".npy": _read_npy,
}


def _numbers(frame: pd.DataFrame, path: Path, na_values: Sequence[str]) -> np.ndarray:
    """Returns the columns as float64 (n, d), NaN in holes.

    Raises:
        DataError: Columns that are not numeric, named with an example of what they hold.
    """
    others = [name for name in frame.columns if not _is_numeric(frame[name])]
    if others:
        cells = frame[others[0]].dropna()
        cell = next((value for value in cells if not isinstance(value, (int, float))), cells.iloc[0])
        numeric = [str(name) for name in frame.columns if name not in others]
        raise DataError(
            f"{path}: columns must be numeric, got {', '.join(map(str, others))} ({others[0]} holds {str(cell)!r}); "
            f"leave them out with columns: [{', '.join(numeric)}], or name what stands for a hole in na_values"
        )
    x = np.column_stack([frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in frame.columns])
    for value in na_values:
        number = pd.to_numeric(value, errors="coerce")
        if not np.isnan(number):
            x[x == number] = np.nan
    return x


def _is_numeric(column: pd.Series) -> bool:
    # A column without any cell may have any type: that it is empty is for the caller to say.
    return bool(column.isna().all()) or (pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "iuf")
