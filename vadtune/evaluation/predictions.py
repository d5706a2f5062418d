"""What models imputed in a retest, kept to be saved for other programs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vadtune.core.errors import ConfigError
from vadtune.data import IncompleteDataset
from vadtune.data.test_masks import MaskKey, Masks

_KINDS = (".npz", ".h5")


def check_predictions_file(path: Path) -> None:
    """Makes sure, before any work is done, that predictions can be saved under a name.

    Raises:
        ConfigError: It is of no known kind.
    """
    if path.suffix not in _KINDS or path.is_dir():
        raise ConfigError(
            f"--save-predictions: takes a file that ends in {' or '.join(_KINDS)}, got {path}; name it so"
        )


class Predictions:
    """Collects imputations during a retest, in the source's units."""

    def __init__(self) -> None:
        self._imputed: dict[str, dict[MaskKey, np.ndarray]] = {}

    def begin(self, dataset: IncompleteDataset, masks: Masks) -> None:
        """Takes the rows and masks that are imputed from now on."""
        self._dataset, self._masks = dataset, masks

    def add(self, method: str, key: MaskKey, x_hat: np.ndarray) -> None:
        """Takes a method's reconstruction (n, d), in the scaler's units, of the rows under one mask."""
        x = np.where(self._masks[key], self._dataset.test_truth, x_hat)
        self._imputed.setdefault(method, {})[key] = self._dataset.scaler.inverse(x).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what is saved, by name.

        Methods m, ratios r and mask seeds s, in the order of the axes; x_imputed float32 (m, r, s, n, d), observed
        cells equal to x_true (n, d); masks bool (r, s, n, d), True = observed; feature_names (d,).
        """
        ratios, seeds = (sorted({key[axis] for key in self._masks}) for axis in (0, 1))
        keys = [[MaskKey(ratio, int(seed)) for seed in seeds] for ratio in ratios]
        imputed = self._imputed.values()
        return {
            "methods": np.array(list(self._imputed)),
            "ratios": np.array(ratios),
            "mask_seeds": np.array(seeds, dtype=np.int64),
            "feature_names": np.array(self._dataset.feature_names),
            "x_true": self._dataset.scaler.inverse(self._dataset.test_truth).astype(np.float32),
            "masks": np.array([[self._masks[key] for key in row] for row in keys]),
            "x_imputed": np.array([[[of_method[key] for key in row] for row in keys] for of_method in imputed]),
        }

    def to_bytes(self, kind: str) -> bytes:
        """Returns an ``.npz`` or ``.h5`` file."""
        buffer = io.BytesIO()
        if kind == ".npz":
            np.savez_compressed(buffer, allow_pickle=False, **self.arrays())
        else:
            _write_hdf5(buffer, self.arrays())
        return buffer.getvalue()


def _write_hdf5(buffer: io.BytesIO, arrays: Mapping[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                file.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            else:
                file.create_dataset(name, data=array, compression="gzip")
