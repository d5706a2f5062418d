"""Retest on complete rows: how well models reconstruct test rows that they are given whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vadtune.checkpoint import find_model_folders, load_model
from vadtune.data import Part
from vadtune.errors import DataError
from vadtune.metrics import score
from vadtune.retest import reconstructions, shared_dataset


def run_clean_retest(path: Path, *, progress: Callable[[str], None] = lambda line: None) -> list[dict[str, object]]:
    """Reconstructs the test rows with nothing hidden, with every model and with the mean of the models.

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
    models = [(folder.name, load_model(folder)) for folder in find_model_folders(path.absolute())]
    dataset = shared_dataset(models)
    truth = dataset.test_truth
    known = ~np.isnan(truth)
    if not known.any():
        raise DataError(
            f"{dataset.config.source}: a test cell of known value is needed, and all are holes; get more rows"
        )
    names = [(name, "model") for name, _ in models]
    if len(models) > 1:
        names.append((f"mean of {len(models)} models", "mean of models"))
    rows: list[dict[str, object]] = []
    inverse = dataset.scaler.inverse
    found = reconstructions([model for _, model in models], [], Part.hide(truth, known))
    for (name, kind), x_hat in zip(names, found, strict=True):
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
