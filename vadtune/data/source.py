"""The data section of a search file, and what loading a source returns: the base of all data sources."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from vadtune.core.schema import SparseSection, Whole, word_or_count
from vadtune.data.missingness import TABLE, AnyMissingConfig, Layout, Mcar, MissingConfig, PartName, StoredMask


class RawData(NamedTuple):
    """Values of a source before any cell is hidden.

    Attributes:
        x: Floats (n, d), in the units of the source, in which scores named ``_original`` are; NaN where missing.
        feature_names: One name per column.
        standardise: Whether columns are scaled to mean 0 and variance 1 for training; pixels and points by one scale
            for all columns, because border pixels hardly vary. False for images with pixels from 0 to 1.
        layout: How columns belong together.
        split: The row indices of each part, int (rows,); None if the source has no split.
        stored_mask: Returns the mask that the source includes for a missing ratio, bool (n, d), True = observed; None
            if it includes no masks.
    """

    x: np.ndarray
    feature_names: list[str]
    standardise: bool
    layout: Layout = TABLE
    split: dict[PartName, np.ndarray] | None = None
    stored_mask: Callable[[float], np.ndarray] | None = None


class HoldoutConfig(SparseSection):
    """Which validation cells are hidden and scored: the observed cells of some rows, in folds that are hidden in turn.

    ``rows`` of None takes as many rows as a score needs, see ``dataset.rows_to_score``.
    """

    folds: Annotated[Whole, Field(ge=2, le=100)] = 4
    rows: Annotated[Whole, Field(ge=1)] | None = None


class DataConfig(SparseSection):
    """Base of the options of all sources: which values are loaded, and which cells are hidden.

    ``missing`` applies to all rows. ``train_missing`` replaces it for the train rows: ``none`` trains on complete rows
    and validates and tests on incomplete ones. Options it omits are those of ``missing``.

    ``sample`` is the number of train rows that a search trains on, a random sample of them; ``all`` takes all. By
    default a search takes all train rows up to 100,000, and a sample of 100,000 above. A refit takes all train rows.

    Attributes:
        may_be_incomplete: Whether values can be missing in the source itself.
        has_stored_masks: Whether the source includes masks, which the mechanism ``file`` uses.
    """

    may_be_incomplete: ClassVar[bool] = False
    has_stored_masks: ClassVar[bool] = False

    source: str
    missing: AnyMissingConfig = Mcar()
    train_missing: AnyMissingConfig | None = None
    sample: Annotated[int | str, word_or_count("all", "train rows")] | None = None
    holdout: HoldoutConfig = HoldoutConfig()

    @abstractmethod
    def load(self) -> RawData:
        """Loads the values.

        Raises:
            DataError: They cannot be read, or break a rule.
        """

    def load_here(self) -> RawData:
        """Loads the values without creating or downloading anything, as a model folder of others may name any place.

        Raises:
            DataError: As for ``load``.
        """
        return self.load()

    @property
    def origin(self) -> str:
        """How messages refer to the data: the path of a file, or the name of the source."""
        return self.source

    @property
    def missing_in_train(self) -> MissingConfig:
        """Which cells of the train rows are hidden."""
        return self.missing if self.train_missing is None else self.train_missing

    @field_validator("missing")
    @classmethod
    def _something_is_missing(cls, missing: MissingConfig, info: ValidationInfo) -> MissingConfig:
        if missing.ratio == 0 and not cls.may_be_incomplete:
            source = info.data.get("source")
            raise ValueError(f"source '{source}' has no missing values, so the ratio must be greater than 0")
        return missing

    @field_validator("train_missing", mode="before")
    @classmethod
    def _omitted_options_are_those_of_missing(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict) and "mechanism" not in value and "missing" in info.data:
            return {**info.data["missing"].model_dump(exclude_unset=True), **value}
        return value

    @field_validator("missing", "train_missing")
    @classmethod
    def _stored_masks_are_found(cls, missing: MissingConfig | None, info: ValidationInfo) -> MissingConfig | None:
        if isinstance(missing, StoredMask):
            if cls.has_stored_masks and missing.path is not None:
                raise ValueError(f"source '{info.data.get('source')}' includes its masks; leave `path` out")
            if not cls.has_stored_masks and missing.path is None:
                raise ValueError("mechanism 'file' needs the `path` of a mask file (1 observed, 0 missing)")
        return missing

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes what all sources share behind the options of the source."""
        values = handler(self)
        shared = {key: values.pop(key) for key in ("missing", "train_missing", "sample", "holdout") if key in values}
        return {key: value for key, value in (values | shared).items() if value is not None}


def pixel_names(height: int, width: int) -> list[str]:
    """Returns one name per pixel, row by row."""
    return [f"pixel_{row}_{column}" for row in range(height) for column in range(width)]


def split_train_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of train and validation rows among n train rows; for sources without validation rows.

    The proportion is 70 to 15, as for sources without any split.
    """
    train, validation = np.split(np.random.RandomState(0).permutation(n), [round(n * 70 / 85)])
    return train, validation
