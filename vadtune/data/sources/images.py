"""MNIST and Fashion-MNIST by torchvision, which downloads them where they are not there yet."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vadtune.config.schema import DataConfig
from vadtune.core.errors import DataError
from vadtune.data.sources.published import load_published
from vadtune.data.sources.source import Layout, Source, pixel_names, split_of_train_rows

_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_DEFAULT_FOLDER = "~/.cache/vadtune"


def load_images(config: DataConfig) -> Source:
    """Returns the grey images, pixels 0 to 1, with torchvision's test images as test rows.

    With ``path`` they come from the published HDF5 files, else from the IDX files in ``data_dir``.

    Raises:
        DataError: The files are not there and cannot be downloaded, or are damaged.
    """
    if config.path is not None:
        return load_published(config)
    folder = config.data_dir or str(Path(_DEFAULT_FOLDER).expanduser())
    reader = getattr(_torchvision_datasets(), _CLASSES[config.source])
    try:
        train, test = (reader(folder, train=part, download=True).data.numpy() for part in (True, False))
    except (
        OSError,
        RuntimeError,
        ValueError,
        AssertionError,
        pickle.UnpicklingError,
    ) as error:  # URLError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data.data_dir: {config.source} is not in {folder} and could not be downloaded, or is damaged there "
            f"({reason}); put its four IDX files into {Path(folder) / _CLASSES[config.source] / 'raw'}"
        ) from error
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{folder}: images must be of one size, got {train.shape[1:]} and {test.shape[1:]}")
    images = np.concatenate([train, test])
    height, width = images.shape[1:]
    train_rows, validation_rows = split_of_train_rows(len(train))
    return Source(
        x=images.reshape(len(images), -1).astype(np.float32) / 255,
        feature_names=pixel_names(height, width),
        standardise=False,
        layout=Layout(image=(height, width)),
        split={"train": train_rows, "validation": validation_rows, "test": np.arange(len(train), len(images))},
    )


def _torchvision_datasets() -> Any:
    """Returns torchvision.datasets, also where torch is the CPU build and torchvision that for CUDA.

    Then importing it fails, as _meta_registrations describes compiled operators that could not be loaded. The readers
    of datasets are plain Python and need none of them: an empty module takes that one's place.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError:
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
        return importlib.import_module("torchvision.datasets")
