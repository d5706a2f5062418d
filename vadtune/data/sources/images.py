"""MNIST and Fashion-MNIST, read by torchvision, which downloads them if needed, or from the published HDF5 files."""

from __future__ import annotations

import gc
import importlib
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ValidationInfo, field_validator

from vadtune.core.errors import DataError
from vadtune.core.extras import require
from vadtune.core.reading import check_regular
from vadtune.core.schema import FilePath
from vadtune.data.missingness import Layout
from vadtune.data.source import DataConfig, RawData, pixel_names, split_train_rows
from vadtune.data.sources.published_hdf5 import load_published

_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
_MOST_BYTES = 2**30
_DEFAULT_FOLDER = "~/.cache/vadtune"


class ImageFiles(DataConfig):
    """Grey images, pixels 0 to 1, with torchvision's test images as test rows."""

    has_stored_masks: ClassVar[bool] = True

    source: Literal["mnist", "fashion_mnist"]
    path: FilePath | None = None  # prefix of the published HDF5 files
    data_dir: FilePath | None = None  # folder of the IDX files; None: ~/.cache/vadtune

    @field_validator("data_dir")
    @classmethod
    def _one_place(cls, data_dir: str | None, info: ValidationInfo) -> str | None:
        if data_dir is not None and info.data.get("path") is not None:
            raise ValueError("is the folder of downloaded files, path that of HDF5 files; leave one of them out")
        return data_dir

    @property
    def origin(self) -> str:
        """The path of the HDF5 files, or the name of the source."""
        return self.path or self.source

    def load(self) -> RawData:
        """See DataConfig."""
        return self._load(download=True)

    def load_here(self) -> RawData:
        """See DataConfig."""
        return self._load(download=False)

    def _load(self, *, download: bool) -> RawData:
        if self.path is not None:
            return load_published(self, self.path)
        folder = self.data_dir or str(Path(_DEFAULT_FOLDER).expanduser())
        _check_files(Path(folder) / _CLASSES[self.source] / "raw", needed=not download)
        reader = getattr(_torchvision_datasets(self.source), _CLASSES[self.source])
        try:
            train, test = (reader(folder, train=part, download=download).data.numpy() for part in (True, False))
        except (OSError, RuntimeError, ValueError, AssertionError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"data.data_dir: {self.source} is not in {folder} and could not be downloaded, or is damaged there "
                f"({reason}); put its four IDX files into {Path(folder) / _CLASSES[self.source] / 'raw'}"
            ) from error
        if train.shape[1:] != test.shape[1:]:
            raise DataError(f"{folder}: images must be of one size, got {train.shape[1:]} and {test.shape[1:]}")
        x = np.concatenate([train, test], dtype=np.float32)
        x /= 255
        height, width = x.shape[1:]
        train_rows, validation_rows = split_train_rows(len(train))
        return RawData(
            x=x.reshape(len(x), -1),
            feature_names=pixel_names(height, width),
            standardise=False,
            layout=Layout(image=(height, width)),
            split={"train": train_rows, "validation": validation_rows, "test": np.arange(len(train), len(x))},
        )


def _check_files(folder: Path, *, needed: bool) -> None:
    """Checks that the IDX files in a folder are regular files of a size that images have, before they are read.

    Raises:
        DataError: One is not, or is not there though it is needed.
    """
    for name in _IDX_FILES:
        try:
            if (size := check_regular(folder / name)) > _MOST_BYTES:
                raise DataError(f"{folder / name}: an IDX file of at most {_MOST_BYTES} bytes expected, got {size}")
        except FileNotFoundError as error:
            if needed:
                raise DataError(
                    f"{folder / name}: does not exist, and for a model folder nothing is downloaded; put the four IDX "
                    "files there, or train or search with this data first"
                ) from error
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read ({error.strerror}); put an IDX file there") from error


def _torchvision_datasets(source: str) -> Any:
    """Imports torchvision.datasets, even where torch is a CPU build and torchvision a CUDA build.

    The import then fails in ``_meta_registrations``, which describes compiled operators that could not be loaded. The
    dataset readers are plain Python and need none of them, so an empty module replaces it.
    """
    try:
        return require("torchvision.datasets", "images", f"data.source: '{source}'")
    except RuntimeError:
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    gc.collect()  # what failed keeps all callers' variables, soon the images, in a cycle
    return importlib.import_module("torchvision.datasets")
