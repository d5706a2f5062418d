"""Previews: some test rows under one mask and their imputation, to be plotted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vadtune.core.errors import ConfigError
from vadtune.core.sampling import sample_rows
from vadtune.data import MaskedRows
from vadtune.data.retest_masks import MaskKey, cells_to_score, draw_masks
from vadtune.ensemble.model_average import ModelAverage

_SHOWN_IMAGES = 8
_SHOWN_ROWS = 2000  # of a table: more points in a panel cover each other


@dataclass(frozen=True)
class Preview:
    """Test rows under one mask and their imputation, in the source's units.

    Attributes:
        source: Name of the data source.
        method: Name of the model or of the mean of several.
        ratio: The missing ratio of the mask.
        feature_names: One name per column.
        rows: Index of each row among the test rows, (n,).
        x_true: (n, d); NaN where a cell is missing in the source itself.
        mask: bool (n, d), True = observed.
        x_imputed: (n, d); observed cells as in the source.
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
        """The missing cells with a known value, bool (n, d)."""
        cells: np.ndarray = ~self.mask & ~np.isnan(self.x_true)
        return cells

    @property
    def error(self) -> np.ndarray:
        """Absolute error (n, d); 0 in observed cells, NaN where the true value is unknown."""
        error: np.ndarray = np.abs(self.x_imputed - self.x_true)
        return error

    def rmse(self, axis: int) -> np.ndarray:
        """Returns the RMSE over the missing cells of each column (axis 0) or row (axis 1); NaN where it has none."""
        squares = np.ma.masked_array(self.error**2, mask=~self.scored)
        rmse: np.ndarray = np.sqrt(squares.mean(axis).filled(np.nan))
        return rmse

    def summary(self) -> list[dict[str, object]]:
        """Returns a row with the RMSE of each image, or of each column of a table."""
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
        path: A model folder, an ensemble, or a folder of model folders.
        ratio: Missing ratio of the mask.
        seed: Seed of the mask and of the choice of rows.
        rows: Number of rows at most; None for 8 images, or 2000 rows of a table.

    Raises:
        ConfigError: ``rows`` is below 1, or the mask hides no known value in the chosen rows.
        ModelFolderError: A model cannot be used, or the models do not fit together.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows: takes a number of rows above 0, got {rows}")
    average = ModelAverage.load(path)
    dataset = average.dataset()
    masks = draw_masks(dataset, [MaskKey(ratio, seed)])
    average.check_unseen(masks)
    (mask,) = masks.values()
    n, image_shape = len(mask), dataset.layout.image
    count = min(n, rows or (_SHOWN_IMAGES if image_shape else _SHOWN_ROWS))
    taken = sample_rows(n, count, seed=seed)
    if not cells_to_score(dataset, mask)[taken].any():
        raise ConfigError(
            f"--rows: needs a missing cell to show, got none in {count} rows; take more, or a larger ratio"
        )
    part, inverse = MaskedRows.hide(dataset.test_truth[taken], mask[taken]), dataset.scaler.inverse
    return Preview(
        source=dataset.config.source,
        method=average.name,
        ratio=ratio,
        feature_names=dataset.feature_names,
        rows=taken,
        x_true=inverse(dataset.test_truth[taken]),
        mask=part.mask,
        x_imputed=inverse(np.where(part.mask, part.x, average.reconstruct(part))),
        image_shape=image_shape,
    )
