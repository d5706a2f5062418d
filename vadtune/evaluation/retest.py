"""Retest: exported models and baselines on the sealed test rows, under masks of many missing ratios.

With the preview the only module that reads the values of test rows. Every method imputes the same rows under the same
masks, having been fitted once, on the same rows under the mask of the training ratio; ratios far from it are the point.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

import numpy as np

from vadtune.core.errors import ConfigError, unknown_name
from vadtune.core.metrics import score
from vadtune.data import IncompleteDataset, MaskedRows, mask_sha256
from vadtune.data.test_masks import MaskKey, cells_to_score, draw_masks, stored_masks
from vadtune.ensemble.model_average import ModelAverage
from vadtune.evaluation.baselines import BASELINES, Impute
from vadtune.evaluation.predictions import Predictions

METRICS = (
    *("missing_rmse", "missing_mae", "missing_rmse_original", "missing_mae_original"),
    *("observed_rmse", "all_rmse", "observed_mse", "all_mse"),
)
"""Errors over the missing, the observed and all cells of the test rows, in the scaler's units, and in the source's own
where the name says so. Baselines copy what is observed: they are scored on missing cells only. ``observed_mse`` is the
masked loss of the published VAD code, ``all_mse`` its loss against the complete rows."""

MASKS_FILE = "masks.npz"
_MOST_RATIOS = 99
_BATCH_CELLS = 2**24  # bounds the memory of the rows that are imputed at once
_FRESH_SEEDS = 2**22  # a mechanism's streams are told apart by seeds below this

Kind = Literal["model", "mean of models", "baseline"]


@dataclass(frozen=True)
class MethodScores:
    """What one method scored.

    Attributes:
        name: In tables and plots.
        kind: What it is.
        scores: For each of METRICS, (ratios, masks of a ratio).
    """

    name: str
    kind: Kind
    scores: dict[str, np.ndarray]

    def mean(self, metric: str) -> np.ndarray:
        """Returns the mean over the masks of each ratio, (ratios,)."""
        return np.asarray(self.scores[metric].mean(axis=1))

    def standard_error(self, metric: str) -> np.ndarray:
        """Returns the standard error of ``mean``, (ratios,); NaN with a single mask, which tells nothing of it."""
        scores = self.scores[metric]
        n = scores.shape[1]
        if n == 1:
            return np.full(len(scores), np.nan)
        with np.errstate(invalid="ignore"):  # of infinite errors
            return np.asarray(scores.std(axis=1, ddof=1) / np.sqrt(n))


@dataclass(frozen=True)
class Retest:
    """Scores of several methods on the same masks.

    Attributes:
        source: Where the data came from.
        training_ratio: The missing ratio the methods were fitted under.
        ratios: The missing ratios tested, ascending.
        seeds: The mask seeds; one mask for each pair of ratio and seed.
        mask_sha256: Hash of each mask.
        methods: Models in the order of their folders, of an ensemble the best alone; their mean; baselines.
    """

    source: str
    training_ratio: float
    ratios: list[float]
    seeds: list[int]
    mask_sha256: dict[MaskKey, str]
    methods: list[MethodScores]

    @property
    def headline(self) -> MethodScores:
        """The mean of the models, or the only model."""
        return [method for method in self.methods if method.kind != "baseline"][-1]

    @property
    def units(self) -> str:
        """What ``missing_rmse`` and ``missing_mae`` are measured in."""
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
                rows.append({**row, **{name: float(of_ratios[i]) for name, of_ratios in values.items()}})
        return rows

    def per_mask(self) -> list[dict[str, object]]:
        """Returns a row per method and mask, with the hash of the mask."""
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


def parse_ratios(text: str) -> list[float]:
    """Returns the ratios that ``first:last:step`` and comma lists name, ascending, without repeats.

    Raises:
        ConfigError: A part is neither a ratio in (0, 1) nor a range of them.
    """
    ratios: set[Decimal] = set()  # decimals, so that 0.1:0.9:0.1 holds 0.3 and not 0.30000000000000004
    for part in text.split(","):
        try:
            numbers = [Decimal(number.strip()) for number in part.split(":")]
        except InvalidOperation:
            numbers = []
        if not all(number.is_finite() for number in numbers):  # "nan" parses, and cannot be compared
            numbers = []
        match numbers:
            case [ratio] if 0 < ratio < 1:
                ratios.add(ratio)
            case [first, last, step] if 0 < first <= last < 1 and step > 0:
                steps = (last - first) // step
                if steps >= _MOST_RATIOS:
                    raise ConfigError(f"--ratios: takes at most {_MOST_RATIOS} ratios, got '{part}'; use a larger step")
                ratios |= {first + i * step for i in range(int(steps) + 1)}
            case _:
                raise ConfigError(
                    f"--ratios: takes ratios above 0 and below 1, as 0.1,0.5 or first:last:step, got '{part}'; "
                    "try 0.1:0.9:0.1"
                )
    return [float(ratio) for ratio in sorted(ratios)]


def fresh_seed() -> int:
    """Returns a first mask seed that nobody chose."""
    return secrets.randbelow(_FRESH_SEEDS)


def run_retest(
    path: Path,
    ratios: Sequence[float],
    seeds: Sequence[int],
    *,
    store_masks: bool = True,
    baselines: Sequence[str] = tuple(BASELINES),
    predictions: Predictions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Retest:
    """Imputes the test rows with models, with their mean and with baselines, under the same masks.

    Args:
        path: A model folder, an ensemble, or a folder of model folders.
        ratios: Missing ratios to test.
        seeds: Mask seeds; each pair of ratio and seed is one mask.
        store_masks: Whether masks come from ``masks.npz`` in ``path``, which is made or extended as needed.
        baselines: Names of BASELINES.
        predictions: Is given what the models impute.
        progress: Is told what is being done.

    Raises:
        ConfigError: A baseline is unknown, or a mask hides nothing.
        ModelFolderError: A model or the stored masks cannot be used, the models do not belong together, or have seen
            cells that a mask hides.
    """
    for name in baselines:
        if name not in BASELINES:
            raise ConfigError(f"--baselines: {unknown_name('baseline', name, BASELINES)}")
    average = ModelAverage.load(path)
    dataset = average.dataset()
    keys = [MaskKey(ratio, seed) for ratio in ratios for seed in seeds]
    masks = draw_masks(dataset, keys)
    average.check_unseen(masks)  # before a file is written
    if store_masks:
        masks = stored_masks(path / MASKS_FILE, dataset, keys)
        average.check_unseen(masks)  # those of a file may be others

    if predictions is not None:
        predictions.begin(dataset, masks)
    rows = dataset.rows_of_refit(average.refit)
    imputers: list[Impute] = []
    for name in baselines:
        progress(f"fitting {name}")
        imputers.append(BASELINES[name](dataset.search_data, rows))
    names = [*named_models(average), *((name, "baseline") for name in baselines)]

    errors = np.empty((len(names), len(METRICS), len(keys)))
    for start, batch in _batches(keys, dataset.test_truth.size):
        parts = [MaskedRows.hide(dataset.test_truth, masks[key]) for key in batch]
        part = MaskedRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        for index, x_hat in enumerate(reconstructions(average, imputers, part)):
            name, kind = names[index]
            progress(f"{name}: {start + len(batch)} of {len(keys)} masks")
            for offset, (key, of_mask) in enumerate(zip(batch, np.split(x_hat, len(batch)), strict=True)):
                errors[index, :, start + offset] = _errors(of_mask, dataset, masks[key], kind)
                if predictions is not None and kind != "baseline":
                    predictions.add(name, key, of_mask)
    by_ratio = errors.reshape(len(names), len(METRICS), len(ratios), len(seeds))
    return Retest(
        source=dataset.config.source,
        training_ratio=dataset.config.missing_in_train.ratio,
        ratios=list(ratios),
        seeds=list(seeds),
        mask_sha256={key: mask_sha256(mask) for key, mask in masks.items()},
        methods=[
            MethodScores(name, kind, dict(zip(METRICS, scores, strict=True)))
            for (name, kind), scores in zip(names, by_ratio, strict=True)
        ],
    )


def named_models(average: ModelAverage) -> list[tuple[str, Kind]]:
    """Returns what of an average is told apart: its models, of an ensemble the best alone, and where there are several
    their mean.
    """
    if len(average.models) == 1 and average.regression is None:
        return [(average.name, "model")]
    single = average.names if average.ensemble is None else average.names[:1]
    return [*((name, "model") for name in single), (average.name, "mean of models")]


def reconstructions(average: ModelAverage, imputers: Sequence[Impute], part: MaskedRows) -> Iterator[np.ndarray]:
    """Yields x_hat (n, d) of what ``named_models`` names, and of every imputer."""
    total = np.zeros(part.x.shape)
    named = named_models(average)
    told = sum(kind == "model" for _, kind in named)
    for index, (model, weight) in enumerate(zip(average.models, average.weights, strict=True)):
        x_hat = model.reconstruct(part)
        total += np.multiply(x_hat, weight, dtype=np.float64)
        if index < told:
            yield x_hat
    if told < len(named):
        yield average.refine(total, part)
    for impute in imputers:
        yield impute(part.x)


def _errors(x_hat: np.ndarray, dataset: IncompleteDataset, mask: np.ndarray, kind: Kind) -> tuple[float, ...]:
    """Returns the values of METRICS."""
    truth, cells, inverse = dataset.test_truth, cells_to_score(dataset, mask), dataset.scaler.inverse
    reconstructed = kind != "baseline" and bool(mask.any())
    observed = score(x_hat, truth, mask).rmse if reconstructed else np.nan
    everything = score(x_hat, truth, ~np.isnan(truth)).rmse if reconstructed else np.nan
    missing = (*score(x_hat, truth, cells), *score(inverse(x_hat), inverse(truth), cells))
    return (*missing, observed, everything, observed**2, everything**2)


def _batches(keys: Sequence[MaskKey], cells: int) -> Iterator[tuple[int, Sequence[MaskKey]]]:
    """Yields masks in groups, each with the index of its first: many rows at once are faster, up to a size."""
    size = max(1, _BATCH_CELLS // cells)
    return ((start, keys[start : start + size]) for start in range(0, len(keys), size))
