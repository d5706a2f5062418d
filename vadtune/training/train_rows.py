"""The train rows of a population."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from vadtune.data import MaskedRows
from vadtune.data.row_blocks import row_blocks

_BLOCK_ROWS = 2048


class TrainRows:
    """The train rows of all members; never changed, so that processes may share the memory of ``train``.

    Args:
        train: The rows; copied only if missing cells are not NaN, or to a GPU.
        device: Where models train.

    Attributes:
        n: Number of rows.
        features: Number of columns d.
        values: The rows (n, d), NaN where missing.
        mask: Which cells are observed, bool (n, d).
        counts: Observed cells of each row, float (n,).
        cells: Number of observed cells.
    """

    def __init__(self, train: MaskedRows, device: torch.device) -> None:
        self.n, self.features = train.x.shape
        x = np.ascontiguousarray(train.x, dtype=np.float32)
        if not all(np.array_equal(np.isnan(x[part]), ~train.mask[part]) for part in row_blocks(*x.shape)):
            x = np.where(train.mask, x, np.float32(np.nan))
        self.values = _shared(x).to(device)
        self.mask = _shared(np.ascontiguousarray(train.mask)).to(device)
        # In blocks: PyTorch sums a copy as int64.
        self.counts = torch.cat([block.sum(1) for block in torch.split(self.mask, _BLOCK_ROWS)]).float()
        self.cells = float(self.counts.sum())

    @property
    def device(self) -> torch.device:
        """Where models train."""
        return self.values.device

    def of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x, with 0 in place of missing cells, and the mask, float, 1 = observed, of rows by index ([p,] b).

        Both have the shape ([p,] b, d).
        """
        x, mask = (each.index_select(0, rows.flatten()).view(*rows.shape, -1) for each in (self.values, self.mask))
        return x.masked_fill_(~mask, 0.0), mask.float()


def _shared(array: np.ndarray) -> Tensor:
    """Returns a tensor that shares an array's memory, which may be read-only and must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a tensor that could be written to
        return torch.from_numpy(array)
