"""Retest: exported models and baselines on the test rows, under masks of many missing ratios or on complete rows.

All methods impute the same rows under the same masks. Each is fitted once, at the training ratio; the point of a retest
is how they do at other ratios.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vadtune.core.errors import ConfigError, DataError, unknown_name
from vadtune.core.metrics import score
from vadtune.core.sampling import sample_rows
from vadtune.data import IncompleteDataset, MaskedRows, Scaler, mask_sha256
from vadtune.data.retest_masks import MaskKey, draw_masks, stored_masks
from vadtune.ensemble.model_average import ModelAverage
from vadtune.evaluation.baselines import BASELINES, Impute, fit_baseline, most_rows, suited_baselines
from vadtune.evaluation.mask_options import MOST_ROWS
from vadtune.evaluation.predictions import Predictions
from vadtune.evaluation.retest_scores import METRICS, Kind, MethodScores, Retest

MASKS_FILE = "masks.npz"
_BATCH_CELLS = 2**21  # bounds the memory of the rows that are imputed at once


def run_retest(
    path: Path,
    ratios: Sequence[float],
    seeds: Sequence[int],
    *,
    store_masks: bool = True,
    baselines: Sequence[str] | None = None,
    rows: int | None = MOST_ROWS,
    predictions: Predictions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Retest:
    """Scores the models in a folder, their weighted mean and baselines on the test rows, all under the same masks.

    Args:
        path: A model folder, an ensemble, or a folder of model folders.
        ratios: Missing ratios to test.
        seeds: Mask seeds; each pair of ratio and seed is one mask.
        store_masks: Whether masks are read from ``masks.npz`` in ``path``, to which missing ones are added.
        baselines: Names of BASELINES; None for those of ``suited_baselines``.
        rows: Score a random sample of so many test rows, the same for all methods and masks; None for all rows.
        predictions: Collects the imputations of the models.
        progress: Called with a line of text for each step.

    Raises:
        ConfigError: A baseline is unknown, or a mask hides no cell.
        ModelFolderError: A model or the stored masks cannot be used, the models do not fit together, or a model was
            trained on cells that a mask hides.
    """
    for name in baselines or ():
        if name not in BASELINES:
            raise ConfigError(f"--baselines: {unknown_name('baseline', name, BASELINES)}")
    average = ModelAverage.load(path)
    dataset = average.dataset()
    keys = [MaskKey(ratio, seed) for ratio in ratios for seed in seeds]
    models = _model_names(average)
    taken = _scored_rows(dataset, rows, progress)
    if predictions is not None:
        predictions.check_size(len(models), len(keys), dataset.test_truth[taken].shape)
    masks = draw_masks(dataset, keys)
    average.check_unseen(masks)  # before a file is written
    if store_masks:
        masks = stored_masks(path / MASKS_FILE, dataset, keys)
        average.check_unseen(masks)  # stored masks may differ from drawn ones
    hashes = {key: mask_sha256(mask) for key, mask in masks.items()}
    truth, masks = dataset.test_truth[taken], {key: mask[taken] for key, mask in masks.items()}
    for key, mask in masks.items():
        if not (~mask & ~np.isnan(truth)).any():
            raise ConfigError(
                f"--rows: a mask must hide a cell of the scored rows, but ratio {key.ratio} with mask seed {key.seed} "
                f"hides none of those of {len(taken)} rows; score more rows"
            )
    if predictions is not None:
        predictions.begin(dataset, taken, masks)
    fitted = _fit_baselines(baselines, dataset, dataset.rows_of_refit(average.refit), progress)
    methods = [*models, *((name, "baseline") for name, _ in fitted)]
    errors = np.empty((len(methods), len(METRICS), len(keys)))
    n, d = truth.shape
    size, blocks = max(1, _BATCH_CELLS // (n * d)), math.ceil(n / max(1, _BATCH_CELLS // d))
    length = math.ceil(n / blocks)  # rows at once of one mask, or all rows of ``size`` masks
    for start in range(0, len(keys), size):
        batch = keys[start : start + size]
        sums = np.zeros((len(methods), len(batch), len(_SUMS)))
        for first in range(0, n, length):
            block = slice(first, first + length)
            parts = [MaskedRows.hide(truth[block], masks[key][block]) for key in batch]
            part = MaskedRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
            x_hats = itertools.chain(_reconstructions(average, part), (impute(part.x) for _, impute in fitted))
            done = f"{start + len(batch)} of {len(keys)} masks"
            if blocks > 1:
                done += f", row {min(first + length, n)} of {n}"
            for method, ((name, kind), x_hat) in enumerate(zip(methods, x_hats, strict=True)):
                progress(f"{name}: {done}")
                for index, (key, of_mask) in enumerate(zip(batch, np.split(x_hat, len(batch)), strict=True)):
                    sums[method, index] += _sums(of_mask, truth[block], masks[key][block], dataset.scaler)
                    if predictions is not None and kind != "baseline":
                        predictions.add(name, key, block, of_mask)
        for method, (_, kind) in enumerate(methods):
            for index in range(len(batch)):
                errors[method, :, start + index] = _errors(sums[method, index], kind)
    by_ratio = errors.reshape(len(methods), len(METRICS), len(ratios), len(seeds))
    return Retest(
        source=dataset.config.source,
        training_ratio=dataset.config.missing_in_train.ratio,
        ratios=list(ratios),
        seeds=list(seeds),
        rows=(n, len(dataset.test_truth)),
        mask_sha256=hashes,
        methods=[
            MethodScores(name, kind, dict(zip(METRICS, scores, strict=True)))
            for (name, kind), scores in zip(methods, by_ratio, strict=True)
        ],
    )


def run_clean_retest(
    path: Path, *, rows: int | None = MOST_ROWS, progress: Callable[[str], None] = lambda line: None
) -> list[dict[str, object]]:
    """Scores how well models and their mean reconstruct complete test rows.

    Only cells that are missing in the source itself stay hidden; they are not scored. Baselines are left out, since
    they copy observed cells.

    Args:
        path: A model folder, an ensemble, or a folder of model folders.
        rows: Score a random sample of so many test rows; None for all rows.
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
    known = ~np.isnan(dataset.test_truth)
    if not known.any():
        raise DataError(f"{dataset.config.source}: needs a test cell of known value, got none; get more rows")
    average.check_unseen({MaskKey(0.0, 0): known})
    taken = _scored_rows(dataset, rows, progress)
    truth, known = dataset.test_truth[taken], known[taken]
    table: list[dict[str, object]] = []
    x_hats = _reconstructions(average, MaskedRows.hide(truth, known))
    for (name, kind), x_hat in zip(_model_names(average), x_hats, strict=True):
        progress(f"{name}: complete test rows")
        errors = score(x_hat, truth, known)
        original = score(dataset.scaler.inverse(x_hat), dataset.scaler.inverse(truth), known)
        table.append(
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
    return table


def _scored_rows(dataset: IncompleteDataset, rows: int | None, progress: Callable[[str], None]) -> np.ndarray:
    """Returns the indices of the test rows to score, and says how many if they are not all."""
    n = len(dataset.test_truth)
    taken = sample_rows(n, rows or n)
    if len(taken) < n:
        progress(f"scoring a sample of {len(taken)} of {n} test rows; to score all: --rows all")
    return taken


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


_SUMS = ("missing", "observed", "squares", "magnitudes", "squares_original", "magnitudes_original", "squares_observed")
"""Sums over the cells of test rows that METRICS are made of: numbers of missing and of observed cells; squared and
absolute errors of missing cells in the scaler's units and in the source's; squared errors of observed cells."""


def _sums(x_hat: np.ndarray, truth: np.ndarray, mask: np.ndarray, scaler: Scaler) -> tuple[float, ...]:
    """Returns the values of _SUMS for some test rows under one mask."""
    cells = ~mask & ~np.isnan(truth)
    error = x_hat[cells].astype(np.float64) - truth[cells]
    original = (scaler.inverse(x_hat) - scaler.inverse(truth))[cells].astype(np.float64)
    observed = x_hat[mask].astype(np.float64) - truth[mask]
    of_missing = (total for values in (error, original) for total in (np.sum(values**2), np.sum(np.abs(values))))
    return (len(error), len(observed), *of_missing, np.sum(observed**2))


def _errors(sums: np.ndarray, kind: Kind) -> tuple[float, ...]:
    """Returns the values of METRICS."""
    missing, observed, squares, magnitudes, squares_original, magnitudes_original, squares_observed = sums.tolist()
    reconstructed = kind != "baseline" and observed > 0
    observed_mse = squares_observed / observed if reconstructed else math.nan
    all_mse = (squares + squares_observed) / (missing + observed) if reconstructed else math.nan
    of_missing = (magnitudes / missing, math.sqrt(squares_original / missing), magnitudes_original / missing)
    reconstruction = (math.sqrt(observed_mse), math.sqrt(all_mse), observed_mse, all_mse)
    return (math.sqrt(squares / missing), *of_missing, *reconstruction)


def _fit_baselines(
    names: Sequence[str] | None, dataset: IncompleteDataset, rows: MaskedRows, progress: Callable[[str], None]
) -> list[tuple[str, Impute]]:
    """Fits baselines; those that take long on many columns only if they are named."""
    n, d = rows.x.shape
    if names is None:
        names = suited_baselines(d)
        if slow := [name for name in BASELINES if name not in names]:
            progress(
                f"left out: {', '.join(slow)}, slow on {d} columns; to run them: --baselines {','.join(BASELINES)}"
            )
    fitted = []
    for name in names:
        most = most_rows(name, d) or n
        progress(f"fitting {name}" + (f" to a sample of {most} of {n} rows" if most < n else ""))
        fitted.append(fit_baseline(name, dataset.search_data, rows))
    return fitted
