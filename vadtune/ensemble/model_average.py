"""Models that are one together: the weighted mean of what they reconstruct, and the data they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.artifacts.model_folder import find_model_folders, load_model, read_manifest
from vadtune.config import REFITS, flatten
from vadtune.core.errors import DataError, ModelFolderError
from vadtune.data import DataConfig, IncompleteDataset, MaskedRows, Scaler, load_dataset, mask_sha256
from vadtune.data.sources.table_file import TableFile
from vadtune.data.test_masks import MaskKey
from vadtune.ensemble.kernel_regression import KernelRegression
from vadtune.ensemble.manifest import Ensemble, read_ensemble, read_regression
from vadtune.ensemble.selection import weighted_sum
from vadtune.training.inference import FittedModel

REFIT, SEEN_TEST_MASK = "refit", "seen_test_mask_sha256"
"""What a manifest's provenance says of the rows a model was trained on anew."""


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
        weights: Of each, with sum 1.
        names: Of each.
        refit: The rows that all were trained on: one of ``config.REFITS``.
        seen_test_masks: SHA-256 of the masks of test rows whose observed cells a model was trained on.
        ensemble: What ensemble.json says; None where models were only put into a folder, which counts each alike.
        regression: What is mixed with the models' mean; None if nothing is. Models that it goes with share a scaler.
    """

    models: tuple[FittedModel, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    refit: str = "train"
    seen_test_masks: frozenset[str] = frozenset()
    ensemble: Ensemble | None = None
    regression: KernelRegression | None = None

    @classmethod
    def load(cls, path: Path) -> ModelAverage:
        """Reads a model folder, an ensemble, or every model folder in a folder.

        Raises:
            ModelFolderError: There is none, one cannot be used, they are of different columns, or the folder is not
                what its ensemble.json says.
        """
        path = path.absolute()
        ensemble = read_ensemble(path)
        folders = find_model_folders(path)
        models = [load_model(folder) for folder in folders]
        for folder, model in zip(folders, models, strict=True):
            if model.feature_names != models[0].feature_names:
                raise ModelFolderError(
                    f"models that are averaged must share their columns, but {folder.name} has others than "
                    f"{folders[0].name}; name a single one of them"
                )
        weights = {folder.name: 1 / len(folders) for folder in folders}
        if ensemble is not None:
            weights = {member.folder: member.weight for member in ensemble.members}
        origins = [read_manifest(folder)["provenance"] for folder in folders]
        refits = [str(origin.get(REFIT, "none")) for origin in origins]
        return cls(
            tuple(models),
            tuple(weights[folder.name] for folder in folders),
            tuple(folder.name for folder in folders),
            max(refits, key=lambda refit: REFITS.index(refit) if refit in REFITS else 0),
            frozenset(str(origin[SEEN_TEST_MASK]) for origin in origins if SEEN_TEST_MASK in origin),
            ensemble,
            read_regression(path, ensemble),
        )

    @property
    def name(self) -> str:
        """What it is called in tables and plots."""
        n = len(self.models)
        if self.regression is not None:
            return f"{n} model{'s' * (n != 1)} + regression"
        return self.names[0] if n == 1 else f"{'ensemble' if self.ensemble else 'mean'} of {n} models"

    def reconstruct(self, part: MaskedRows) -> np.ndarray:
        """Returns the weighted mean of the models' reconstructions, float64 (n, d), in the scaler they share; missing
        cells of it mixed with the regression."""
        return self.refine(weighted_sum((model.reconstruct(part) for model in self.models), self.weights), part)

    def refine(self, mean: np.ndarray, part: MaskedRows) -> np.ndarray:
        """Returns the mean of the models' reconstructions of rows, mixed with the regression, if one goes with them."""
        return mean if self.regression is None else self.regression.refine(mean, part)

    def dataset(self) -> IncompleteDataset:
        """Returns the dataset that all the models were trained on.

        Raises:
            ModelFolderError: They were trained on different ones, or the data here is another.
        """
        return shared_dataset(list(zip(self.names, self.models, strict=True)))

    def check_unseen(self, masks: Mapping[MaskKey, np.ndarray]) -> None:
        """Makes sure that no mask of the test rows hides what a model has seen.

        Raises:
            ModelFolderError: One does.
        """
        for key, mask in masks.items():
            if self.seen_test_masks - {mask_sha256(mask)}:
                raise ModelFolderError(
                    "models refitted on all-observed have seen the observed cells of the test rows under their own "
                    f"mask, so only that mask can test them, got ratio {key.ratio:g} with mask seed {key.seed}; retest "
                    f"with --ratios {self.models[0].config.data.missing.ratio:g} and the mask seed of "
                    "data.missing.seed, or export with --refit train+validation"
                )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns, in the order ``fill`` takes them."""
        return self.models[0].feature_names

    @property
    def na_values(self) -> tuple[str, ...]:
        """What stood for a hole in the table the models were trained on, beside empty cells and NaN."""
        data = self.models[0].config.data
        return tuple(data.na_values or ()) if isinstance(data, TableFile) else ()

    def fill(self, x: np.ndarray) -> Filled:
        """Fills holes with the weighted mean of the models' reconstructions, of empty rows of their priors' means.

        Args:
            x: (n, d) in the source's units, NaN where missing.

        Raises:
            DataError: A value is infinite, or so large that a model cannot take it in.
        """
        x = np.asarray(x, dtype=np.float64)
        mask = ~np.isnan(x)
        x_nan = ~mask.all(axis=1)
        total = np.zeros(x.shape)
        for model, weight in zip(self.models, self.weights, strict=True):
            scaler = _scaler(model)
            with np.errstate(over="ignore"):  # of what float32 cannot hold: told below
                part = MaskedRows.hide(scaler.transform(x), mask)
            _check_finite(part.x, mask, x)
            if x_nan.any():
                total[x_nan] += weight * scaler.inverse(model.reconstruct(part.of_rows(x_nan)))
        if self.regression is not None and x_nan.any():
            scaler = _scaler(self.models[0])
            mean = (total[x_nan] - scaler.offset) / scaler.scale
            total[x_nan] = scaler.inverse(self.refine(mean, part.of_rows(x_nan)))
        filled = np.where(mask, x, total)
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


def shared_dataset(models: Sequence[tuple[str, FittedModel]]) -> IncompleteDataset:
    """Returns the dataset that all the models were trained on."""
    data = models[0][1].config.data
    for name, model in models:
        if model.config.data.model_copy(update={"holdout": data.holdout}) != data:
            raise ModelFolderError(
                "models that are retested together must share their data section but for the hold-out, got "
                f"{_told(data)} in {models[0][0]} and {_told(model.config.data)} in {name}; retest them apart"
            )
    dataset = load_dataset(data)
    for name, model in models:
        if model.scaler is None or not _same_scaler(model.scaler, dataset.scaler):
            raise ModelFolderError(
                f"{name}: its scaler must be that of the data it names, but {data.source} as it is here gives another; "
                "use the data and the package versions it was trained with, or train it anew"
            )
    return dataset


def _told(data: DataConfig) -> str:
    values = data.model_dump(exclude={"holdout"})
    return ", ".join(f"{key} {value}" for key, value in flatten(values).items())


def _same_scaler(one: Scaler, other: Scaler) -> bool:
    # Not bit for bit: another machine may sum in another order.
    return one.offset.shape == other.offset.shape and all(
        np.allclose(mine, others, rtol=1e-6, atol=0)
        for mine, others in ((one.offset, other.offset), (one.scale, other.scale))
    )
