"""The dataset that several models were trained on, loaded again and compared with what the models recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vadtune.config import flatten
from vadtune.core.errors import ModelFolderError
from vadtune.data import DataConfig, IncompleteDataset, Scaler, load_dataset
from vadtune.training.inference import FittedModel


def shared_dataset(models: Sequence[tuple[str, FittedModel]]) -> IncompleteDataset:
    """Loads the dataset that all the models, given with their names, were trained on.

    Raises:
        ModelFolderError: The models have different data sections, or the data gives another scaler than theirs.
        DataError: The data cannot be loaded.
    """
    data = models[0][1].config.data
    for name, model in models:
        if model.config.data.model_copy(update={"holdout": data.holdout}) != data:
            raise ModelFolderError(
                "models that are retested together must share their data section except for the hold-out, got "
                f"{_describe(data)} in {models[0][0]} and {_describe(model.config.data)} in {name}; retest them apart"
            )
    dataset = load_dataset(data, data.load_here())
    for name, model in models:
        if model.scaler is None or not _close(model.scaler, dataset.scaler):
            raise ModelFolderError(
                f"{name}: its scaler must be that of the data it names, but {data.source} gives another one here; "
                "use the data and the package versions it was trained with, or train it again"
            )
    return dataset


def _describe(data: DataConfig) -> str:
    return ", ".join(f"{key} {value}" for key, value in flatten(data.model_dump(exclude={"holdout"})).items())


def _close(a: Scaler, b: Scaler) -> bool:
    # Not bit for bit: another machine may sum in another order.
    return a.offset.shape == b.offset.shape and np.allclose([a.offset, a.scale], [b.offset, b.scale], rtol=1e-6, atol=0)
