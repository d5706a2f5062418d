"""Rows with missing cells, and the observed validation cells that are hidden for selection."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vadtune.data.source import HoldoutConfig


class MaskedRows(NamedTuple):
    """Rows with missing cells.

    Attributes:
        x: float32 (n, d), in the scaler's units, NaN where not observed.
        mask: bool (n, d), True = observed.
    """

    x: np.ndarray
    mask: np.ndarray

    @classmethod
    def hide(cls, x: np.ndarray, mask: np.ndarray) -> MaskedRows:
        """Returns the rows with every cell outside ``mask`` replaced by NaN."""
        return cls(np.where(mask, x, np.nan).astype(np.float32), mask)

    def of_rows(self, rows: np.ndarray) -> MaskedRows:
        """Returns some of the rows, selected by indices or booleans."""
        return MaskedRows(self.x[rows], self.mask[rows])


class HeldOut(NamedTuple):
    """Validation rows with observed cells hidden, f folds stacked along the rows.

    Attributes:
        visible: MaskedRows of (f*n, d): the input of inference.
        truth: float32 (f*n, d): values of observed validation cells, NaN elsewhere.
        cells: bool (f*n, d): the held-out observed cells, which are scored. Every observed validation cell is held out
            in exactly one fold.
    """

    visible: MaskedRows
    truth: np.ndarray
    cells: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The true values of the held-out cells, float32 (c,), in the order of ``np.nonzero(cells)``."""
        values: np.ndarray = self.truth[self.cells]
        return values

    def of_rows(self, rows: np.ndarray, n: int) -> HeldOut:
        """Returns all folds of some of the n validation rows, selected by indices."""
        taken = (np.arange(0, len(self.cells), n)[:, None] + rows).ravel()
        return HeldOut(self.visible.of_rows(taken), self.truth[taken], self.cells[taken])


class SearchData(NamedTuple):
    """All data a search sees: no test row and no truly missing cell."""

    train: MaskedRows
    validation: HeldOut


def hold_out(part: MaskedRows, config: HoldoutConfig, *, seed: int) -> HeldOut:
    """Divides the observed cells into folds and hides each fold once, given the others.

    The cells of every row are divided evenly, starting at a random fold, so that inference keeps about the same share
    of each row and folds are of about equal size. A row with a single observed cell is predicted once from nothing.

    Args:
        part: Rows with missing cells (n, d).
        config: The number of folds.
        seed: The same seed hides the same cells.

    Returns:
        The folds stacked along the rows, fold after fold.
    """
    folds = config.folds
    rng = np.random.default_rng([seed, 1])
    keys = np.where(part.mask, rng.random(part.mask.shape), np.inf)
    rank = keys.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")  # of a cell within its row
    fold = (rank + rng.integers(folds, size=(len(keys), 1))) % folds
    cells = np.concatenate([part.mask & (fold == index) for index in range(folds)])
    x = np.tile(part.x, (folds, 1))
    visible = MaskedRows.hide(x, np.tile(part.mask, (folds, 1)) & ~cells)
    return HeldOut(visible, x, cells)
