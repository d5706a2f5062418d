"""Random samples of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_rows(n: int, most: int, *, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Returns the indices, ascending, of ``most`` random rows of n, or of all n; a sample holds all smaller samples."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most]) if most < n else np.arange(n)
