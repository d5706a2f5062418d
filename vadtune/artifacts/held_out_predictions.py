"""Held-out predictions: held_out.npz in a trial's checkpoint, from which the members of an ensemble are chosen."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from vadtune.core.errors import ModelFolderError
from vadtune.core.files import NOT_ARRAYS
from vadtune.core.reading import read_bounded
from vadtune.data import HeldOut, mask_sha256

HELD_OUT_FILE = "held_out.npz"
_HEADERS = 4096  # bytes, an upper bound of what the file unpacks to in addition to the predictions


def save_held_out(folder: Path, predictions: np.ndarray, held_out: HeldOut) -> None:
    """Writes a model's predictions of the held-out validation cells into a checkpoint.

    Args:
        folder: The checkpoint.
        predictions: float32 (c,), in the scaler's units, in the order of ``HeldOut.values``.
        held_out: The cells; their hash is stored, since only predictions of the same cells can be averaged.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predictions=predictions, cells=np.array(mask_sha256(held_out.cells)))
    (folder / HELD_OUT_FILE).write_bytes(buffer.getvalue())


def load_held_out(folder: Path, held_out: HeldOut) -> np.ndarray:
    """Reads what ``save_held_out`` wrote: float32 (c,), in the scaler's units.

    Raises:
        ModelFolderError: The file is missing or damaged, or its cells are not those of ``held_out``.
    """
    path, count = folder / HELD_OUT_FILE, int(held_out.cells.sum())
    try:
        content = read_bounded(path, 8 * count + 4 * _HEADERS)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * count + _HEADERS:
                raise ValueError("it unpacks to more than the predictions")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            cells_hash, predictions = str(file["cells"]), np.asarray(file["predictions"])
        if cells_hash != mask_sha256(held_out.cells):
            raise ValueError("it is about other held-out cells than those of this data")
        if predictions.shape != (count,) or predictions.dtype != np.float32:
            raise ValueError(f"it holds {predictions.dtype} of shape {predictions.shape}")
        if not np.isfinite(predictions).all():
            raise ValueError("it holds values that are not finite")
    except NOT_ARRAYS as error:
        raise ModelFolderError(f"{path}: cannot be used ({' '.join(str(error).split())}); search again") from error
    return predictions
