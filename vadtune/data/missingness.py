"""Which cells are missing.

To add a mechanism: one function here, one line in MECHANISMS, its name in config.MECHANISMS.

A mask is bool with True = observed. Masks of a dataset are a function of (mask seed, part, ratio) alone, by numpy's
legacy generator, whose stream is frozen:

    RandomState(1000 * seed + 17 * part + int(100 * ratio)).rand(n, d) > ratio

That is the recipe behind the published comparison figures for these datasets, so scores compare cell for cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

PartName = Literal["train", "validation", "test"]
_PART_NUMBER: dict[PartName, int] = {"train": 0, "validation": 1, "test": 2}


class UniformDraws(Protocol):
    """What a mechanism needs of a generator; numpy's legacy and current generators both have it."""

    def random(self, size: tuple[int, ...]) -> np.ndarray:
        """Returns uniform draws from [0, 1) of this shape."""
        ...


def mcar(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws) -> np.ndarray:
    """Missing completely at random: each cell is missing with probability ``missing_ratio``, whatever its value.

    Args:
        x: Values (n, d); only the shape is used.
        missing_ratio: In (0, 1).
        rng: A numpy generator.

    Returns:
        bool (n, d), True = observed.
    """
    observed: np.ndarray = rng.random(x.shape) > missing_ratio
    return observed


MECHANISMS: dict[str, Callable[..., np.ndarray]] = {"mcar": mcar}


def draw_mask(mechanism: str, x: np.ndarray, missing_ratio: float, *, seed: int, part: PartName) -> np.ndarray:
    """Returns the mask of one part of a dataset, bool (n, d), True = observed; the same for the same arguments.

    Cells that are NaN in ``x`` (the source's own holes) are never observed.
    """
    rng = np.random.RandomState((1000 * seed + 17 * _PART_NUMBER[part] + int(missing_ratio * 100)) % 2**32)
    mask: np.ndarray = MECHANISMS[mechanism](x, missing_ratio, rng=rng) & ~np.isnan(x)
    return mask


def mask_sha256(mask: np.ndarray) -> str:
    """Returns the SHA-256 of a mask's shape and packed bits, as hexadecimal."""
    digest = hashlib.sha256(repr(mask.shape).encode())
    digest.update(np.packbits(np.ascontiguousarray(mask, dtype=bool)).tobytes())
    return digest.hexdigest()
