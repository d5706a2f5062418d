"""Retest on complete rows: how well models reconstruct test rows that they are given whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.metrics import score
from vadtune.data import MaskedRows
from vadtune.data.test_masks import MaskKey
from vadtune.ensemble.model_average import ModelAverage
from vadtune.evaluation.retest import named_models, reconstructions


def run_clean_retest(path: Path, *, progress: Callable[[str], None] = lambda line: None) -> list[dict[str, object]]:
    """Reconstructs the test rows with nothing hidden, with models and with their mean.

    Baselines are left out: they copy what is observed, and so have no error here. Only the source's own holes, of which
    nobody knows the value, stay hidden and are not scored.

    Args:
        path: A model folder, or a folder of them.
        progress: Is told what is being done.

    Returns:
        A row per method: errors over all cells of the test rows, in the scaler's units, and in the source's own where
        the name says so. ``all_mse`` is the published code's loss on clean data.

    Raises:
        ModelFolderError: A model cannot be used, or the models do not belong together.
        DataError: The source has no test cell of known value.
    """
    average = ModelAverage.load(path)
    dataset = average.dataset()
    truth = dataset.test_truth
    known = ~np.isnan(truth)
    if not known.any():
        raise DataError(
            f"{dataset.config.source}: a test cell of known value is needed, and all are holes; get more rows"
        )
    average.check_unseen({MaskKey(0.0, 0): known})
    rows: list[dict[str, object]] = []
    inverse = dataset.scaler.inverse
    found = reconstructions(average, [], MaskedRows.hide(truth, known))
    for (name, kind), x_hat in zip(named_models(average), found, strict=True):
        progress(f"{name}: complete test rows")
        errors, original = score(x_hat, truth, known), score(inverse(x_hat), inverse(truth), known)
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
