"""IncompleteDataset: values and masks, split into train, validation and test rows.

Three rules keep selection honest. Values of missing cells are removed (NaN) from the rows that models train on and
infer. A search receives a SearchData, which holds no test row. Validation is scored on *observed* validation cells that
were hidden on purpose, so it also works on data whose missing values are unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.sampling import sample_rows
from vadtune.data.missingness import TABLE, Layout, draw_mask, mask_sha256
from vadtune.data.row_blocks import row_blocks
from vadtune.data.scaler import Scaler
from vadtune.data.source import DataConfig, HoldoutConfig

# A score ranks trials: more rows and cells than these cost inference time and hardly change the ranking, see
# benchmarks/scale.py.
_ROWS_TO_SCORE, _CELLS_TO_SCORE = 1_000, 20_000


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
        return cls(np.where(mask, x, np.nan).astype(np.float32, copy=False), mask)

    @classmethod
    def scaled(cls, x: np.ndarray, rows: np.ndarray, mask: np.ndarray, scaler: Scaler) -> MaskedRows:
        """Returns the rows (r,) of ``x`` (n, d) in the scaler's units, hidden outside ``mask`` (r, d), in blocks."""
        hidden = np.empty(mask.shape, np.float32)
        for block in row_blocks(len(rows), x.shape[1]):
            hidden[block] = np.where(mask[block], scaler.transform(x[rows[block]]), np.nan)
        return cls(hidden, mask)

    def of_rows(self, rows: np.ndarray) -> MaskedRows:
        """Returns some of the rows, selected by indices or booleans."""
        return MaskedRows(self.x[rows], self.mask[rows])


class HeldOut(NamedTuple):
    """Validation rows with observed cells hidden, f folds stacked along the rows.

    Attributes:
        visible: MaskedRows of (f*n, d): the input of inference.
        truth: float32 (f*n, d): values of observed validation cells, NaN elsewhere.
        cells: bool (f*n, d): the held-out observed cells, which are scored. Every observed cell of the rows is held
            out in exactly one fold.
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


def rows_to_score(mask: np.ndarray, config: HoldoutConfig, *, seed: int) -> np.ndarray:
    """Returns the validation rows whose cells are held out: all rows, or a random sample where there are many.

    The sample has at least 1,000 rows and 20,000 observed cells, unless ``config.rows`` says otherwise.

    Args:
        mask: Of all validation rows, bool (n, d).
        config: The hold-out settings.
        seed: The same seed takes the same rows.

    Returns:
        Row indices, ascending.
    """
    per_row = max(float(mask.mean()) * mask.shape[1], 1e-9)
    most = config.rows or max(_ROWS_TO_SCORE, int(np.ceil(_CELLS_TO_SCORE / per_row)))
    return sample_rows(len(mask), most, seed=[seed, 3])


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


@dataclass(frozen=True)
class IncompleteDataset:
    """A dataset with missing cells, split into train, validation and test rows.

    Attributes:
        config: The data section it was loaded from.
        feature_names: One name per column.
        scaler: Fitted on the observed cells of the train rows only.
        train: The train rows of a search, as models see them: all, or the sample of ``config.sample``.
        all_train: All train rows, which the scaler is fitted on and a refit trains on.
        validation: The validation rows, as models see them.
        test_truth: float32 (n_test, d), in the scaler's units, NaN where unknown. Only a retest reads it.
        layout: How columns belong together.
        stored_test_mask: Returns the stored mask of the test rows for a missing ratio; None where masks are drawn.
    """

    config: DataConfig
    feature_names: list[str]
    scaler: Scaler
    train: MaskedRows
    all_train: MaskedRows
    validation: MaskedRows
    test_truth: np.ndarray
    layout: Layout = TABLE
    stored_test_mask: Callable[[float], np.ndarray] | None = None

    @cached_property
    def search_data(self) -> SearchData:
        """What a search may see, with the hold-outs of ``config.holdout``."""
        scored = self.validation.of_rows(self.scored_rows)
        return SearchData(self.train, hold_out(scored, self.config.holdout, seed=self.config.missing.seed))

    @cached_property
    def scored_rows(self) -> np.ndarray:
        """Indices of the validation rows whose observed cells are held out and scored, ascending."""
        return rows_to_score(self.validation.mask, self.config.holdout, seed=self.config.missing.seed)

    @property
    def mask_hashes(self) -> dict[str, str]:
        """The SHA-256 of the masks that models are trained and selected on, to be recorded with the results."""
        return {"train": mask_sha256(self.all_train.mask), "validation": mask_sha256(self.validation.mask)}

    def rows_of_refit(self, refit: str) -> MaskedRows:
        """Returns the rows that models are refitted on, by one of ``config.REFITS``; missing cells stay NaN.

        A refit trains on all train rows; with ``none`` the models stay those of the search and of its sample.
        """
        if refit == "none":
            return self.train
        parts = [self.all_train]
        if refit in ("train+validation", "all-observed"):
            parts.append(self.validation)
        if refit == "all-observed":
            parts.append(MaskedRows.hide(self.test_truth, self.default_test_mask()))
        return parts[0] if len(parts) == 1 else MaskedRows(*map(np.concatenate, zip(*parts, strict=True)))

    def default_test_mask(self) -> np.ndarray:
        """Returns the mask of the test rows at the ratio and mask seed of ``config.missing``."""
        seed = 0 if self.stored_test_mask is not None else self.config.missing.seed
        return self.test_mask(self.config.missing.ratio, seed)

    def test_mask(self, missing_ratio: float, seed: int) -> np.ndarray:
        """Returns a mask of the test rows, bool (n_test, d), True = observed; the same for the same arguments.

        Raises:
            DataError: Masks are stored, and none has this ratio, or ``seed`` is not 0: one is stored per ratio.
        """
        if self.stored_test_mask is None:
            mechanism = self.config.missing
            return draw_mask(mechanism, self.test_truth, missing_ratio, seed=seed, part="test", layout=self.layout)
        if seed:
            raise DataError(
                f"data.missing: {self.config.source} has one stored mask for each ratio, got mask seed {seed}; "
                "retest with --seeds 1, or search with a mechanism that draws masks"
            )
        mask: np.ndarray = self.stored_test_mask(missing_ratio) & ~np.isnan(self.test_truth)
        return mask

    def test_part(self, missing_ratio: float, seed: int) -> MaskedRows:
        """Returns the test rows under the mask of this ratio and mask seed."""
        return MaskedRows.hide(self.test_truth, self.test_mask(missing_ratio, seed))
