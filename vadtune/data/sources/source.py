"""What a source gives: values, names, and what is known of their arrangement and split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

PartName = Literal["train", "validation", "test"]


class Layout(NamedTuple):
    """How the columns of a row belong together.

    Attributes:
        image: Height and width, where a row is an image, row by row of pixels; None where it is not.
        point_dims: Columns of a point, where a row is a list of points (x, y, x, y, ...); None where it is not.
    """

    image: tuple[int, int] | None = None
    point_dims: int | None = None


TABLE = Layout()
"""Columns that have nothing to do with each other."""


class Source(NamedTuple):
    """Values as a source gives them.

    Attributes:
        x: Floats (n, d), in the source's own units, which scores called ``_original`` use; NaN where the source
            itself has a hole.
        feature_names: One name per column.
        standardise: Whether columns are brought to mean 0 and variance 1 for training; pixels and points by one scale
            for all of them, as border pixels hardly vary at all. Images whose pixels are 0 to 1 are not.
        layout: How columns belong together.
        split: The rows of each part, int (rows,), where the source comes with a split; None where it does not.
        stored_mask: Returns the source's own mask of a missing ratio, bool (n, d), True = observed; None where it
            comes without masks.
    """

    x: np.ndarray
    feature_names: list[str]
    standardise: bool
    layout: Layout = TABLE
    split: dict[PartName, np.ndarray] | None = None
    stored_mask: Callable[[float], np.ndarray] | None = None


def pixel_names(height: int, width: int) -> list[str]:
    """Returns a name for each pixel, row by row."""
    return [f"pixel_{row}_{column}" for row in range(height) for column in range(width)]


def split_of_train_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of the train rows of a source without validation rows are for training and which for validation.

    They are in the proportion of 70 to 15, as in sources that come without any split.
    """
    train, validation = np.split(np.random.RandomState(0).permutation(n), [round(n * 70 / 85)])
    return train, validation
