"""Imputations of a retest, collected and saved for other programs."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from vadtune.core.errors import ConfigError
from vadtune.core.extras import require
from vadtune.data import IncompleteDataset
from vadtune.data.retest_masks import MaskKey, Masks

_KINDS = (".npz", ".h5")
_MOST_GB = 4.0  # of imputed values, which are collected in memory, twice while they are written


def check_predictions_file(path: Path) -> None:
    """Checks, before any work is done, that a path is a possible name for a file of predictions.

    Raises:
        ConfigError: Its ending is unknown, or it is a folder.
    """
    if path.suffix not in _KINDS or path.is_dir():
        raise ConfigError(
            f"--save-predictions: takes a file that ends in {' or '.join(_KINDS)}, got {path}; name it so"
        )


class Predictions:
    """Collects imputations during a retest and writes them in the source's units."""

    def __init__(self) -> None:
        self._imputed: dict[str, dict[MaskKey, np.ndarray]] = {}

    def check_size(self, methods: int, masks: int, shape: tuple[int, ...]) -> None:
        """Checks, before any work is done, that the imputations are not too large.

        Args:
            methods: Number of methods.
            masks: Number of masks.
            shape: Of the test rows, (n, d).

        Raises:
            ConfigError: They are.
        """
        gigabytes = 4e-9 * methods * masks * math.prod(shape)
        if gigabytes > _MOST_GB:
            raise ConfigError(
                f"--save-predictions: takes {_MOST_GB:g} GB of imputations at most, got {gigabytes:.1f} GB "
                f"({methods} methods x {masks} masks x {shape[0]} rows x {shape[1]} columns); lower --ratios or --seeds"
            )

    def begin(self, dataset: IncompleteDataset, rows: np.ndarray, masks: Masks) -> None:
        """Sets the dataset, the indices of the test rows that are imputed, (n,), and the masks of these rows."""
        self._dataset, self._rows, self._masks = dataset, rows, masks
        self._truth = dataset.test_truth[rows]

    def add(self, method: str, key: MaskKey, rows: slice, x_hat: np.ndarray) -> None:
        """Adds a method's reconstruction of some of the test rows under one mask, in the scaler's units."""
        truth = self._truth
        by_key = self._imputed.setdefault(method, {})
        imputed = by_key.setdefault(key, np.empty(truth.shape, np.float32))
        imputed[rows] = self._dataset.scaler.inverse(np.where(self._masks[key][rows], truth[rows], x_hat))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays to save, by name.

        Returns:
            methods (m,), ratios (r,), mask_seeds (s,), feature_names (d,); rows (n,), their indices among the test
            rows; x_true float32 (n, d); masks bool
            (r, s, n, d), True = observed; x_imputed float32 (m, r, s, n, d), equal to x_true in observed cells.
        """
        ratios, seeds = (sorted({key[axis] for key in self._masks}) for axis in (0, 1))
        keys = [[MaskKey(ratio, int(seed)) for seed in seeds] for ratio in ratios]
        imputed = self._imputed.values()
        return {
            "methods": np.array(list(self._imputed)),
            "ratios": np.array(ratios),
            "mask_seeds": np.array(seeds, dtype=np.int64),
            "feature_names": np.array(self._dataset.feature_names),
            "rows": self._rows,
            "x_true": self._dataset.scaler.inverse(self._truth).astype(np.float32),
            "masks": np.array([[self._masks[key] for key in row] for row in keys]),
            "x_imputed": np.array([[[by_key[key] for key in row] for row in keys] for by_key in imputed]),
        }

    def to_bytes(self, kind: str) -> bytes:
        """Returns the content of an ``.npz`` or ``.h5`` file."""
        buffer = io.BytesIO()
        if kind == ".npz":
            np.savez_compressed(buffer, allow_pickle=False, **self.arrays())
            return buffer.getvalue()
        h5py = require("h5py", "hdf5", "--save-predictions: .h5")

        with h5py.File(buffer, "w") as file:
            for name, array in self.arrays().items():
                if array.dtype.kind == "U":
                    file.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
                else:
                    file.create_dataset(name, data=array, compression="gzip")
        return buffer.getvalue()
