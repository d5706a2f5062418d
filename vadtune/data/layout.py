"""How the columns of a row belong together, and the names of the parts of a dataset."""

from __future__ import annotations

from typing import Literal, NamedTuple

PartName = Literal["train", "validation", "test"]


class Layout(NamedTuple):
    """How the columns of a row belong together.

    Attributes:
        image: Height and width if a row is an image, stored pixel row by pixel row; else None.
        point_dims: Columns per point if a row is a list of points (x, y, x, y, ...); else None.
    """

    image: tuple[int, int] | None = None
    point_dims: int | None = None


TABLE = Layout()
"""Columns without any arrangement."""
