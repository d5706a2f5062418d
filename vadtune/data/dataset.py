"""IncompleteDataset: values and masks, split into train, validation and test rows.

Three rules keep selection honest. Values of missing cells are removed (NaN) from the rows that models train on and
infer. A search receives a SearchData, which holds no test row. Validation is scored on *observed* validation cells that
were hidden on purpose, so it also works on data whose missing values are unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vadtune.core.errors import DataError
from vadtune.data.layout import TABLE, Layout
from vadtune.data.masked_rows import MaskedRows, SearchData, hold_out
from vadtune.data.missingness import draw_mask, mask_sha256
from vadtune.data.scaler import Scaler
from vadtune.data.source import DataConfig


@dataclass(frozen=True)
class IncompleteDataset:
    """A dataset with missing cells, split into train, validation and test rows.

    Attributes:
        config: The data section it was loaded from.
        feature_names: One name per column.
        scaler: Fitted on the observed cells of the train rows only.
        train: The train rows, as models see them.
        validation: The validation rows, as models see them.
        test_truth: float32 (n_test, d), in the scaler's units, NaN where unknown. Only a retest reads it.
        layout: How columns belong together.
        stored_test_mask: Returns the stored mask of the test rows for a missing ratio; None where masks are drawn.
    """

    config: DataConfig
    feature_names: list[str]
    scaler: Scaler
    train: MaskedRows
    validation: MaskedRows
    test_truth: np.ndarray
    layout: Layout = TABLE
    stored_test_mask: Callable[[float], np.ndarray] | None = None

    @cached_property
    def search_data(self) -> SearchData:
        """What a search may see, with the hold-outs of ``config.holdout``."""
        return SearchData(self.train, hold_out(self.validation, self.config.holdout, seed=self.config.missing.seed))

    @property
    def mask_hashes(self) -> dict[str, str]:
        """The SHA-256 of the masks that models are trained and selected on, to be recorded with the results."""
        return {"train": mask_sha256(self.train.mask), "validation": mask_sha256(self.validation.mask)}

    def rows_of_refit(self, refit: str) -> MaskedRows:
        """Returns the rows that models are refitted on, by one of ``config.REFITS``; missing cells stay NaN."""
        parts = [self.train]
        if refit in ("train+validation", "all-observed"):
            parts.append(self.validation)
        if refit == "all-observed":
            parts.append(MaskedRows.hide(self.test_truth, self.default_test_mask()))
        return MaskedRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

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
