"""The weighted mean of several models' reconstructions, which imputes as one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.artifacts.model_folder import find_model_folders, load_model, read_manifest
from vadtune.config import REFITS
from vadtune.core.errors import DataError, ModelFolderError
from vadtune.data import IncompleteDataset, MaskedRows, Scaler, mask_sha256
from vadtune.data.retest_masks import MaskKey
from vadtune.data.sources.table_file import TableFile
from vadtune.ensemble.ensemble_json import Ensemble, read_ensemble, read_regression
from vadtune.ensemble.kernel_regression import KernelRegression
from vadtune.ensemble.selection import weighted_sum
from vadtune.ensemble.shared_dataset import shared_dataset
from vadtune.training.inference import FittedModel

REFIT, SEEN_TEST_MASK = "refit", "seen_test_mask_sha256"
"""Keys of a manifest's provenance: the rows a model was trained on again, and the mask of the test rows among them."""

_PROGRESS_SECONDS = 2.0


class Filled(NamedTuple):
    """Rows without missing cells.

    Attributes:
        x: float64 (n, d), in the source's units; observed cells are those of the input.
        empty_rows: Number of rows without any observed cell, which are filled with the mean of the models' priors.
    """

    x: np.ndarray
    empty_rows: int


@dataclass(frozen=True)
class ModelAverage:
    """Models that impute together; they must have the same columns.

    Attributes:
        models: One or more, each with its scaler.
        weights: One per model, with sum 1.
        names: One per model.
        refit: The rows the models were trained on, one of ``REFITS``.
        seen_test_masks: SHA-256 of the masks of test rows whose observed cells a model was trained on.
        ensemble: The content of ensemble.json; None for a plain folder of models, which have equal weights.
        regression: The regression mixed with the mean, or None. Models with a regression share one scaler.
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
        """Loads a model folder, an ensemble, or all model folders in a folder.

        Raises:
            ModelFolderError: No model was found, a file is damaged, the columns differ, or the folder does not match
                its ensemble.json.
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
        """The name in tables and plots."""
        n = len(self.models)
        if self.regression is not None:
            return f"{n} model{'s' * (n != 1)} + regression"
        return self.names[0] if n == 1 else f"{'ensemble' if self.ensemble else 'mean'} of {n} models"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns, in the order that ``fill`` expects."""
        return self.models[0].feature_names

    @property
    def na_values(self) -> tuple[str, ...]:
        """Texts that marked missing cells in the training table, in addition to empty cells and NaN."""
        data = self.models[0].config.data
        return tuple(data.na_values or ()) if isinstance(data, TableFile) else ()

    def dataset(self) -> IncompleteDataset:
        """Loads the dataset that all the models were trained on; raises as ``shared_dataset`` does."""
        return shared_dataset(list(zip(self.names, self.models, strict=True)))

    def check_unseen(self, masks: Mapping[MaskKey, np.ndarray]) -> None:
        """Checks that no model was trained on test cells that one of the masks hides.

        Raises:
            ModelFolderError: A model was.
        """
        for key, mask in masks.items():
            if self.seen_test_masks - {mask_sha256(mask)}:
                raise ModelFolderError(
                    "models refitted on all-observed have seen the observed cells of the test rows under their own "
                    f"mask, so only that mask can test them, got ratio {key.ratio:g} with mask seed {key.seed}; retest "
                    f"with --ratios {self.models[0].config.data.missing.ratio:g} and the mask seed of "
                    "data.missing.seed, or export with --refit train+validation"
                )

    def reconstruct(self, part: MaskedRows) -> np.ndarray:
        """Returns x_hat, float64 (n, d): the weighted mean of the models, its missing cells mixed with the regression.

        For models that share a scaler, in its units.
        """
        return self.refine(weighted_sum((model.reconstruct(part) for model in self.models), self.weights), part)

    def refine(self, mean: np.ndarray, part: MaskedRows) -> np.ndarray:
        """Returns the mean of the models' reconstructions (n, d) mixed with the regression, if there is one."""
        return mean if self.regression is None else self.regression.refine(mean, part)

    def fill(self, x: np.ndarray, *, first_row: int = 0) -> Filled:
        """Fills missing cells with the weighted mean of the models, mixed with the regression.

        Args:
            x: (n, d) in the source's units, NaN where missing.
            first_row: Index of the first of the rows in their table, for messages.

        Raises:
            DataError: A value is infinite or too large for a model.
        """
        x = np.asarray(x, dtype=np.float64)
        mask = ~np.isnan(x)
        incomplete = ~mask.all(axis=1)
        total = np.zeros(x.shape)
        for model, weight in zip(self.models, self.weights, strict=True):
            scaler = _scaler(model)
            with np.errstate(over="ignore"):  # values beyond float32 are reported below
                part = MaskedRows.hide(scaler.transform(x), mask)
            _check_finite(part.x, mask, x, first_row)
            if incomplete.any():
                total[incomplete] += weight * scaler.inverse(model.reconstruct(part.of_rows(incomplete)))
        if self.regression is not None and incomplete.any():
            scaler = _scaler(self.models[0])
            mean = (total[incomplete] - scaler.offset) / scaler.scale
            total[incomplete] = scaler.inverse(self.refine(mean, part.of_rows(incomplete)))
        filled = np.where(mask, x, total)
        _check_finite(filled, ~mask, x, first_row)
        return Filled(filled, int((~mask.any(axis=1)).sum()))


class StreamedFill:
    """Fills the rows of a table, block by block, and reports progress.

    Args:
        models: The models to fill with.
        rows: Number of rows of the table, or an estimate of it, for the progress.
        progress: Called with a line of text every two seconds.

    Attributes:
        rows: Number of rows so far.
        cells: Number of their cells.
        filled_cells: Number of their missing cells.
        empty_rows: Number of rows without any observed cell.
    """

    def __init__(
        self, models: ModelAverage, *, rows: int = 0, progress: Callable[[str], None] = lambda line: None
    ) -> None:
        self._models, self._expected, self._progress = models, rows, progress
        self._began = self._reported = time.monotonic()
        self.rows = self.cells = self.filled_cells = self.empty_rows = 0

    def fill(self, x: np.ndarray) -> np.ndarray:
        """Returns the next rows (b, d) without missing cells; raises as ``ModelAverage.fill`` does."""
        filled = self._models.fill(x, first_row=self.rows)
        self.rows += len(x)
        self.cells += x.size
        self.filled_cells += int(np.isnan(x).sum())
        self.empty_rows += filled.empty_rows
        now = time.monotonic()
        if now - self._reported > _PROGRESS_SECONDS:
            self._reported, expected = now, max(self._expected, self.rows)
            rate = self.rows / (now - self._began)
            self._progress(f"filled {self.rows} of about {expected} rows, {rate:.0f} rows/s")
        return filled.x


def _check_finite(values: np.ndarray, cells: np.ndarray, x: np.ndarray, first_row: int) -> None:
    bad = cells & ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        largest = x[row][np.nanargmax(np.abs(x[row]))] if not np.isnan(x[row]).all() else np.nan
        raise DataError(
            f"values must be near those the models were trained on, got {largest:g} in row {first_row + row + 1}; "
            "correct it, or leave the cell empty"
        )


def _scaler(model: FittedModel) -> Scaler:
    assert model.scaler is not None, "load_model always gives a scaler"
    return model.scaler
