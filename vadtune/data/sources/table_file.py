"""The user's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vadtune.core.errors import DataError
from vadtune.core.schema import FilePath, Text, Whole
from vadtune.data.missingness import Layout
from vadtune.data.source import DataConfig, RawData
from vadtune.tables import read_table


class TableFile(DataConfig):
    """A CSV, Parquet, npy or npz file; its columns may be pixels of images or coordinates of points."""

    may_be_incomplete: ClassVar[bool] = True

    source: Literal["file"]
    path: FilePath
    columns: Annotated[list[Text], Field(min_length=1)] | None = None  # None: all
    na_values: list[Text] | None = None  # texts that mark a missing cell, in addition to an empty cell and NaN
    image: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    point_dims: Annotated[Whole, Field(ge=1, description="columns of a point")] | None = None

    @property
    def origin(self) -> str:
        """The path of the file."""
        return self.path

    def load(self) -> RawData:
        """See DataConfig; the columns must also make the images or points that the options promise."""
        x, names = read_table(Path(self.path), self.columns, self.na_values or ())
        if self.image is not None and self.image[0] * self.image[1] != len(names):
            height, width = self.image
            raise DataError(f"data.image: {height} x {width} images need {height * width} columns, got {len(names)}")
        if self.point_dims is not None and len(names) % self.point_dims:
            raise DataError(f"data.point_dims: points of {self.point_dims} do not fit into {len(names)} columns")
        image = None if self.image is None else (self.image[0], self.image[1])
        return RawData(x, names, standardise=True, layout=Layout(image, self.point_dims))
