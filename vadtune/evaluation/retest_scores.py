"""The scores of a retest: errors of several methods under the same masks, as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vadtune.data.retest_masks import MaskKey

METRICS = (
    *("missing_rmse", "missing_mae", "missing_rmse_original", "missing_mae_original"),
    *("observed_rmse", "all_rmse", "observed_mse", "all_mse"),
)
"""Errors over the missing, observed or all cells of the test rows, in the scaler's units, or in the source's where the
name ends in ``original``. ``observed_mse`` is the masked loss of the published VAD code, ``all_mse`` its loss against
the complete rows. Baselines copy observed cells, so that only their errors over missing cells are not NaN."""

Kind = Literal["model", "mean of models", "baseline"]


@dataclass(frozen=True)
class MethodScores:
    """The scores of one method.

    Attributes:
        name: Its name in tables and plots.
        kind: A model, the mean of all models, or a baseline.
        scores: For each of METRICS an array (ratios, seeds).
    """

    name: str
    kind: Kind
    scores: dict[str, np.ndarray]

    def mean(self, metric: str) -> np.ndarray:
        """Returns the mean over the masks of each ratio, (ratios,)."""
        return np.asarray(self.scores[metric].mean(axis=1))

    def standard_error(self, metric: str) -> np.ndarray:
        """Returns the standard error of ``mean``, (ratios,); NaN where there is a single mask."""
        scores = self.scores[metric]
        n = scores.shape[1]
        if n == 1:
            return np.full(len(scores), np.nan)
        with np.errstate(invalid="ignore"):  # infinite errors of diverged methods
            return np.asarray(scores.std(axis=1, ddof=1) / np.sqrt(n))


@dataclass(frozen=True)
class Retest:
    """The scores of several methods under the same masks.

    Attributes:
        source: Name of the data source.
        training_ratio: The missing ratio of the train rows.
        ratios: The missing ratios tested, ascending.
        seeds: The mask seeds; each pair of ratio and seed is one mask.
        rows: Number of test rows that were scored, and of all test rows.
        mask_sha256: SHA-256 of each mask of all test rows.
        methods: Models in the order of their folders (of an ensemble the best one alone), their mean, baselines.
    """

    source: str
    training_ratio: float
    ratios: list[float]
    seeds: list[int]
    rows: tuple[int, int]
    mask_sha256: dict[MaskKey, str]
    methods: list[MethodScores]

    @property
    def headline(self) -> MethodScores:
        """The scores of the mean of the models, or of the only model."""
        return [method for method in self.methods if method.kind != "baseline"][-1]

    @property
    def units(self) -> str:
        """The units of ``missing_rmse`` and ``missing_mae``."""
        scores = self.headline.scores
        same = np.array_equal(scores["missing_rmse"], scores["missing_rmse_original"])
        return "the source's units" if same else "standardised units"

    def summary(self) -> list[dict[str, object]]:
        """Returns a row per method and ratio: mean and standard error of every metric over the masks."""
        rows: list[dict[str, object]] = []
        for method in self.methods:
            values = {}
            for metric in METRICS:
                values[metric], values[f"{metric}_se"] = method.mean(metric), method.standard_error(metric)
            for i, ratio in enumerate(self.ratios):
                row = {"method": method.name, "kind": method.kind, "missing_ratio": ratio, "masks": len(self.seeds)}
                rows.append(
                    {
                        **row,
                        "test_rows": self.rows[0],
                        **{name: float(by_ratio[i]) for name, by_ratio in values.items()},
                    }
                )
        return rows

    def per_mask(self) -> list[dict[str, object]]:
        """Returns a row per method and mask: every metric, and the hash of the mask."""
        return [
            {
                "method": method.name,
                "kind": method.kind,
                "missing_ratio": ratio,
                "mask_seed": seed,
                "mask_sha256": self.mask_sha256[MaskKey(ratio, seed)],
                **{metric: float(scores[i, j]) for metric, scores in method.scores.items()},
            }
            for method in self.methods
            for i, ratio in enumerate(self.ratios)
            for j, seed in enumerate(self.seeds)
        ]
