"""The train rows of a population."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vadtune.data import MaskedRows


class TrainRows:
    """The train rows of all members; never changed, so that processes may share the memory of ``train``.

    Only PyTorch and EM need copies (``x``, ``mask``); the kernels read the rows as they are.

    Args:
        train: The rows; copied only if missing cells are not NaN.
        device: Where PyTorch trains.

    Attributes:
        n: Number of rows.
        features: Number of columns d.
        device: Where PyTorch trains.
        values: The rows (n, d) on the CPU, NaN where missing.
        counts: Observed cells of each row (n,), on the device.
        cells: Number of observed cells.
    """

    def __init__(self, train: MaskedRows, device: torch.device) -> None:
        self.n, self.features = train.x.shape
        self.device = device
        x = np.ascontiguousarray(train.x, dtype=np.float32)
        if not np.array_equal(np.isnan(x), ~train.mask):
            x = np.where(train.mask, x, np.float32(np.nan))
        self.values = _shared(x)
        self._observed = _shared(np.ascontiguousarray(train.mask))
        counts = self._observed.sum(1)
        self.counts = counts.float().to(device)
        self.cells = float(counts.sum())

    @cached_property
    def x(self) -> Tensor:
        """The rows (n, d), with 0 in place of missing cells."""
        return self.values.masked_fill(~self._observed, 0.0).to(self.device)

    @cached_property
    def mask(self) -> Tensor:
        """Which cells are observed (n, d), float, 1 = observed."""
        return self._observed.float().to(self.device)

    def forget_copies(self) -> None:
        """Frees ``x`` and ``mask``; they are made again when they are needed."""
        self.__dict__.pop("x", None)
        self.__dict__.pop("mask", None)


def _shared(array: np.ndarray) -> Tensor:
    """Returns a tensor that shares an array's memory, which may be read-only and must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a tensor that could be written to
        return torch.from_numpy(array)
