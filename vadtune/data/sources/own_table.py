"""The user's own table as a source, and masks from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vadtune.config.schema import DataConfig
from vadtune.core.errors import DataError
from vadtune.data.sources.source import Layout, Source
from vadtune.tables import read_table


def read_mask(path: Path, shape: tuple[int, ...], names: Sequence[str]) -> np.ndarray:
    """Reads a mask: a table of 1 or true (observed) and 0 or false (missing), a row for each row of the data.

    Args:
        path: As for ``read_table``.
        shape: Of the data (n, d).
        names: Columns of the data, which a mask that is no array must name as well, in any order.

    Returns:
        bool (n, d), True = observed.

    Raises:
        DataError: It cannot be read, has another shape or other values.
    """
    columns = None if path.suffix.lower() in (".npy", ".npz") else names
    return as_mask(read_table(path, columns, booleans=True).x, shape, str(path))


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
