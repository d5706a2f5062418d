"""Preview: what models make of some test rows, for a plot. Beside the retest the only module that reads test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vadtune.core.errors import ConfigError
from vadtune.data import MaskedRows
from vadtune.data.test_masks import MaskKey, cells_to_score, draw_masks
from vadtune.ensemble.model_average import ModelAverage

_SHOWN_IMAGES = 8


@dataclass(frozen=True)
class Preview:
    """Test rows under one mask, and their imputation, in the source's units.

    Attributes:
        source: Where the data came from.
        method: Name of the model, or of the mean of several.
        ratio: The share of cells made missing.
        feature_names: One name per column.
        rows: Index of each row among the test rows, (n,).
        x_true: (n, d); NaN where the source itself has a hole.
        mask: bool (n, d), True = observed.
        x_imputed: (n, d), observed cells as given.
        image_shape: (height, width) where rows are images, else None.
    """

    source: str
    method: str
    ratio: float
    feature_names: list[str]
    rows: np.ndarray
    x_true: np.ndarray
    mask: np.ndarray
    x_imputed: np.ndarray
    image_shape: tuple[int, int] | None

    @property
    def scored(self) -> np.ndarray:
        """The missing cells whose value is known, bool (n, d)."""
        cells: np.ndarray = ~self.mask & ~np.isnan(self.x_true)
        return cells

    @property
    def error(self) -> np.ndarray:
        """Absolute error (n, d); 0 in observed cells, NaN where nobody knows the value."""
        error: np.ndarray = np.abs(self.x_imputed - self.x_true)
        return error

    def rmse(self, axis: int) -> np.ndarray:
        """Returns the root mean squared error over the missing cells of each column (axis 0) or row (axis 1); NaN
        where there is none."""
        squares, count = np.where(self.scored, self.error, 0.0) ** 2, self.scored.sum(axis)
        mean: np.ndarray = np.divide(squares.sum(axis), count, out=np.full(count.shape, np.nan), where=count > 0)
        rmse: np.ndarray = np.sqrt(mean)
        return rmse

    def summary(self) -> list[dict[str, object]]:
        """Returns the errors of each image, or of each column of a table."""
        axis, kind, names = (
            (1, "test_row", self.rows.tolist()) if self.image_shape else (0, "column", self.feature_names)
        )
        counts, errors = self.scored.sum(axis), self.rmse(axis)
        return [
            {kind: name, "missing_cells": int(count), "missing_rmse_original": float(error)}
            for name, count, error in zip(names, counts, errors, strict=True)
        ]


def make_preview(path: Path, *, ratio: float, seed: int, rows: int | None = None) -> Preview:
    """Imputes test rows by the mean of the models.

    Args:
        path: A model folder, or a folder of them.
        ratio: Share of cells to make missing.
        seed: Of the mask, and of which rows are taken.
        rows: How many; None for 8 images, or all rows of a table. Never more than there are.

    Raises:
        ConfigError: No row is asked for, or the mask hides nothing in those that are.
        ModelFolderError: A model cannot be used, or the models do not belong together.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows: takes a number of rows above 0, got {rows}")
    average = ModelAverage.load(path)
    dataset = average.dataset()
    key = MaskKey(ratio, seed)
    masks = draw_masks(dataset, [key])
    average.check_unseen(masks)
    mask = masks[key]
    n = len(mask)
    image_shape = dataset.layout.image
    count = min(n, rows or (_SHOWN_IMAGES if image_shape else n))
    taken = np.sort(np.random.default_rng(seed).permutation(n)[:count])
    if not cells_to_score(dataset, mask)[taken].any():
        raise ConfigError(
            f"--rows: needs a missing cell to show, got none in {count} rows; take more, or a larger ratio"
        )
    part = MaskedRows.hide(dataset.test_truth[taken], mask[taken])
    x_hat = average.reconstruct(part)
    inverse = dataset.scaler.inverse
    return Preview(
        source=dataset.config.source,
        method=average.name,
        ratio=ratio,
        feature_names=dataset.feature_names,
        rows=taken,
        x_true=inverse(dataset.test_truth[taken]),
        mask=mask[taken],
        x_imputed=inverse(np.where(part.mask, part.x, x_hat)),
        image_shape=image_shape,
    )
