"""Imputation of new rows in their own units by the average of trained models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.checkpoint import find_model_folders, load_model
from vadtune.data import Part, Scaler
from vadtune.errors import DataError, ModelFolderError
from vadtune.inference import FittedModel


class Filled(NamedTuple):
    """Rows without holes.

    Attributes:
        x: float64 (n, d), in the source's units: observed cells as they were given.
        empty_rows: How many rows had no observed cell, and are the models' prior means.
    """

    x: np.ndarray
    empty_rows: int


@dataclass(frozen=True)
class ModelAverage:
    """Models that impute together. They may differ in all but their columns.

    Attributes:
        models: One or more, each with its scaler.
    """

    models: tuple[FittedModel, ...]

    @classmethod
    def load(cls, path: Path) -> ModelAverage:
        """Reads a model folder, or every model folder in a folder.

        Raises:
            ModelFolderError: There is none, one cannot be used, or they are of different columns.
        """
        folders = find_model_folders(path)
        models = [load_model(folder) for folder in folders]
        for folder, model in zip(folders, models, strict=True):
            if model.feature_names != models[0].feature_names:
                raise ModelFolderError(
                    f"models that are averaged must share their columns, but {folder.name} has others than "
                    f"{folders[0].name}; name a single one of them"
                )
        return cls(tuple(models))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns, in the order ``fill`` takes them."""
        return self.models[0].feature_names

    @property
    def na_values(self) -> tuple[str, ...]:
        """What stood for a hole in the table the models were trained on, beside empty cells and NaN."""
        return tuple(self.models[0].config.data.na_values or ())

    def fill(self, x: np.ndarray) -> Filled:
        """Fills holes with the mean of the models' reconstructions; a row without anything else is their prior's mean.

        Args:
            x: (n, d) in the source's units, NaN where missing.

        Raises:
            DataError: A value is infinite, or so large that a model cannot take it in.
        """
        x = np.asarray(x, dtype=np.float64)
        mask = ~np.isnan(x)
        holed = ~mask.all(axis=1)
        total = np.zeros(x.shape)
        for model in self.models:
            scaler = _scaler(model)
            with np.errstate(over="ignore"):  # of what float32 cannot hold: told below
                part = Part.hide(scaler.transform(x), mask)
            _check_finite(part.x, mask, x)
            if holed.any():
                total[holed] += scaler.inverse(model.reconstruct(Part(part.x[holed], mask[holed])))
        filled = np.where(mask, x, total / len(self.models))
        _check_finite(filled, ~mask, x)
        return Filled(filled, int((~mask.any(axis=1)).sum()))


def _check_finite(values: np.ndarray, cells: np.ndarray, x: np.ndarray) -> None:
    bad = cells & ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        largest = x[row][np.nanargmax(np.abs(x[row]))] if not np.isnan(x[row]).all() else np.nan
        raise DataError(
            f"values must be near those the models were trained on, got {largest:g} in row {row + 1}; correct it, or "
            "leave the cell empty"
        )


def _scaler(model: FittedModel) -> Scaler:
    assert model.scaler is not None, "a model that was loaded has its scaler"
    return model.scaler
