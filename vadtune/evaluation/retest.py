"""Retest: exported models and baselines on the test rows, under masks of many missing ratios or on complete rows.

All methods impute the same rows under the same masks. Each is fitted once, at the training ratio; the point of a retest
is how they do at other ratios.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vadtune.core.errors import ConfigError, DataError, unknown_name
from vadtune.core.metrics import Score, score
from vadtune.data import IncompleteDataset, MaskedRows, mask_sha256
from vadtune.data.retest_masks import MaskKey, cells_to_score, draw_masks, stored_masks
from vadtune.ensemble.model_average import ModelAverage
from vadtune.evaluation.baselines import BASELINES
from vadtune.evaluation.predictions import Predictions
from vadtune.evaluation.retest_scores import METRICS, Kind, MethodScores, Retest

MASKS_FILE = "masks.npz"
_BATCH_CELLS = 2**24  # bounds the memory of the rows that are imputed at once


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
    """Scores the models in a folder, their weighted mean and baselines on the test rows, all under the same masks.

    Args:
        path: A model folder, an ensemble, or a folder of model folders.
        ratios: Missing ratios to test.
        seeds: Mask seeds; each pair of ratio and seed is one mask.
        store_masks: Whether masks are read from ``masks.npz`` in ``path``, to which missing ones are added.
        baselines: Names of BASELINES.
        predictions: Collects the imputations of the models.
        progress: Called with a line of text for each step.

    Raises:
        ConfigError: A baseline is unknown, or a mask hides no cell.
        ModelFolderError: A model or the stored masks cannot be used, the models do not fit together, or a model was
            trained on cells that a mask hides.
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
        average.check_unseen(masks)  # stored masks may differ from drawn ones
    if predictions is not None:
        predictions.begin(dataset, masks)
    rows = dataset.rows_of_refit(average.refit)
    imputers = []
    for name in baselines:
        progress(f"fitting {name}")
        imputers.append(BASELINES[name](dataset.search_data, rows))
    methods = [*_model_names(average), *((name, "baseline") for name in baselines)]
    errors = np.empty((len(methods), len(METRICS), len(keys)))
    size = max(1, _BATCH_CELLS // dataset.test_truth.size)  # many rows at once are faster
    for start in range(0, len(keys), size):
        batch = keys[start : start + size]
        parts = [MaskedRows.hide(dataset.test_truth, masks[key]) for key in batch]
        part = MaskedRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        x_hats = itertools.chain(_reconstructions(average, part), (impute(part.x) for impute in imputers))
        for method, ((name, kind), x_hat) in enumerate(zip(methods, x_hats, strict=True)):
            progress(f"{name}: {start + len(batch)} of {len(keys)} masks")
            for index, (key, of_mask) in enumerate(zip(batch, np.split(x_hat, len(batch)), strict=True), start=start):
                errors[method, :, index] = _errors(of_mask, dataset, masks[key], kind)
                if predictions is not None and kind != "baseline":
                    predictions.add(name, key, of_mask)
    by_ratio = errors.reshape(len(methods), len(METRICS), len(ratios), len(seeds))
    return Retest(
        source=dataset.config.source,
        training_ratio=dataset.config.missing_in_train.ratio,
        ratios=list(ratios),
        seeds=list(seeds),
        mask_sha256={key: mask_sha256(mask) for key, mask in masks.items()},
        methods=[
            MethodScores(name, kind, dict(zip(METRICS, scores, strict=True)))
            for (name, kind), scores in zip(methods, by_ratio, strict=True)
        ],
    )


def run_clean_retest(path: Path, *, progress: Callable[[str], None] = lambda line: None) -> list[dict[str, object]]:
    """Scores how well models and their mean reconstruct complete test rows.

    Only cells that are missing in the source itself stay hidden; they are not scored. Baselines are left out, since
    they copy observed cells.

    Args:
        path: A model folder, an ensemble, or a folder of model folders.
        progress: Called with a line of text for each method.

    Returns:
        A row per method: errors over all known cells, in the scaler's units, or in the source's units where the name
        ends in ``original``. ``all_mse`` is the published VAD code's loss on clean data.

    Raises:
        ModelFolderError: A model cannot be used, the models do not fit together, or a model was trained on test rows.
        DataError: No test cell has a known value.
    """
    average = ModelAverage.load(path)
    dataset = average.dataset()
    truth = dataset.test_truth
    known = ~np.isnan(truth)
    if not known.any():
        raise DataError(f"{dataset.config.source}: needs a test cell of known value, got none; get more rows")
    average.check_unseen({MaskKey(0.0, 0): known})
    rows: list[dict[str, object]] = []
    x_hats = _reconstructions(average, MaskedRows.hide(truth, known))
    for (name, kind), x_hat in zip(_model_names(average), x_hats, strict=True):
        progress(f"{name}: complete test rows")
        errors, original = _both_units(x_hat, dataset, known)
        rows.append(
            {
                "method": name,
                "kind": kind,
                "all_rmse": errors.rmse,
                "all_mae": errors.mae,
                "all_mse": errors.rmse**2,
                "all_rmse_original": original.rmse,
                "all_mae_original": original.mae,
            }
        )
    return rows


def _model_names(average: ModelAverage) -> list[tuple[str, Kind]]:
    """Returns names and kinds of the models to score: each model (of an ensemble the best alone), then their mean."""
    if len(average.models) == 1 and average.regression is None:
        return [(average.name, "model")]
    single = average.names if average.ensemble is None else average.names[:1]
    return [*((name, "model") for name in single), (average.name, "mean of models")]


def _reconstructions(average: ModelAverage, part: MaskedRows) -> Iterator[np.ndarray]:
    """Yields x_hat (n, d), in the scaler's units, for each of ``_model_names``; every model infers once."""
    kinds = [kind for _, kind in _model_names(average)]
    total = np.zeros(part.x.shape)
    for index, (model, weight) in enumerate(zip(average.models, average.weights, strict=True)):
        x_hat = model.reconstruct(part)
        total += np.multiply(x_hat, weight, dtype=np.float64)
        if index < kinds.count("model"):
            yield x_hat
    if "mean of models" in kinds:
        yield average.refine(total, part)


def _errors(x_hat: np.ndarray, dataset: IncompleteDataset, mask: np.ndarray, kind: Kind) -> tuple[float, ...]:
    """Returns the values of METRICS."""
    truth = dataset.test_truth
    reconstructed = kind != "baseline" and bool(mask.any())
    observed = score(x_hat, truth, mask).rmse if reconstructed else np.nan
    everything = score(x_hat, truth, ~np.isnan(truth)).rmse if reconstructed else np.nan
    standardised, original = _both_units(x_hat, dataset, cells_to_score(dataset, mask))
    return (*standardised, *original, observed, everything, observed**2, everything**2)


def _both_units(x_hat: np.ndarray, dataset: IncompleteDataset, cells: np.ndarray) -> tuple[Score, Score]:
    """Returns the errors over cells of the test rows in the scaler's units and in the source's units."""
    truth, inverse = dataset.test_truth, dataset.scaler.inverse
    return score(x_hat, truth, cells), score(inverse(x_hat), inverse(truth), cells)
