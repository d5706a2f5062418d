"""Data sources. To add one: its options and its loader as a subclass of DataConfig in a module here, one line below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from vadtune.core.schema import by_tag
from vadtune.data.source import DataConfig
from vadtune.data.sources.bundled import BundledTable
from vadtune.data.sources.images import ImageFiles
from vadtune.data.sources.published_hdf5 import PublishedLandmarks, PublishedTable
from vadtune.data.sources.synthetic import Synthetic
from vadtune.data.sources.table_file import TableFile

SOURCES: dict[str, type[DataConfig]] = by_tag(
    "source", BundledTable, TableFile, Synthetic, ImageFiles, PublishedLandmarks, PublishedTable
)
"""Name of a source -> its options, whose ``load`` reads the values."""

if TYPE_CHECKING:
    AnyDataConfig = DataConfig
else:
    AnyDataConfig = Annotated[Union[tuple(dict.fromkeys(SOURCES.values()))], Field(discriminator="source")]  # noqa: UP007
