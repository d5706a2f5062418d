"""Which cells are missing.

To add a mechanism: one function here, one line in MECHANISMS, its name in config.MECHANISMS.

A mask is bool with True = observed. Masks of a dataset are a function of (mask seed, part, ratio) and, for some
mechanisms, the values alone, by numpy's legacy generator, whose stream is frozen. For mcar:

    RandomState(1000 * seed + 17 * part + int(100 * ratio)).rand(n, d) > ratio

That is the recipe behind the published comparison figures for these datasets, so scores compare cell for cell.

They are written here and not taken from a library: pygrinder works on series (samples, steps, features), draws from
numpy's global generator and brings a package of data downloads; pyampute hides cells row by row by patterns and has
had no release since 2022.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from vadtune.core.errors import DataError
from vadtune.data.sources.source import TABLE, Layout, PartName

_PART_NUMBER: dict[PartName, int] = {"train": 0, "validation": 1, "test": 2}
_DRIVERS = 0.3  # share of the columns that mar leaves observed, where the ratio leaves room
_SLOPE = 2.0  # of the logistic curves, per standard deviation


class UniformDraws(Protocol):
    """What a mechanism needs of a generator; numpy's legacy and current generators both have it."""

    def random(self, size: tuple[int, ...]) -> np.ndarray:
        """Returns uniform draws from [0, 1) of this shape."""
        ...


def mcar(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws, layout: Layout) -> np.ndarray:
    """Missing completely at random: each cell is missing with probability ``missing_ratio``, whatever its value.

    Args:
        x: Values (n, d), NaN where the source has a hole; only the shape is used.
        missing_ratio: In (0, 1).
        rng: A numpy generator.
        layout: How columns belong together; not used.

    Returns:
        bool (n, d), True = observed.
    """
    observed: np.ndarray = rng.random(x.shape) > missing_ratio
    return observed


def mar(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws, layout: Layout) -> np.ndarray:
    """Missing at random: some columns are always observed, and a logistic curve in them says which others are missing.

    Which columns drive, and with which weights, is the same for every part, ratio and seed of a dataset; a higher ratio
    leaves fewer drivers. See ``mcar`` for the arguments.

    Raises:
        DataError: The ratio leaves no column to be always observed.
    """
    d = x.shape[1]
    room = math.floor(d * (1 - missing_ratio) + 1e-9)
    if room < 1 or d < 2:
        raise DataError(
            f"data.missing.ratio: mar keeps a column observed, so {d} columns bear a ratio up to {1 - 1 / d:.3f}, "
            f"got {missing_ratio:g}; lower it, or take mcar"
        )
    drivers = max(1, min(round(_DRIVERS * d), math.ceil(room / 2)))
    fixed = np.random.RandomState(d)
    order = fixed.permutation(d)
    weights = fixed.standard_normal((drivers, d))[:, drivers:]
    others = order[drivers:]
    logits = _standardised(x)[:, order[:drivers]] @ weights / math.sqrt(drivers)
    probability = _logistic_meeting(_SLOPE * logits, missing_ratio * d / len(others), np.ones(logits.shape, bool))
    observed = np.ones(x.shape, dtype=bool)
    observed[:, others] = rng.random(logits.shape) >= probability
    return observed


def mnar(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws, layout: Layout) -> np.ndarray:
    """Missing not at random: the greater a value for its column, the likelier it is missing, by a logistic curve.

    See ``mcar`` for the arguments.
    """
    probability = _logistic_meeting(_SLOPE * _standardised(x), missing_ratio, ~np.isnan(x))
    observed: np.ndarray = rng.random(x.shape) >= probability
    return observed


def mnar_quantile(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws, layout: Layout) -> np.ndarray:
    """Self-masking by quantile: only values in the upper part of their column can be missing.

    The upper part is a share √ratio of the column's values, and each of them is missing with probability √ratio: with
    ratio .25 half of the upper half. Equal values are put in an order by chance. See ``mcar`` for the arguments.
    """
    chance, order = rng.random(x.shape), rng.random(x.shape)
    known = ~np.isnan(x)
    count = known.sum(0)  # (d,)
    at_risk = np.ceil(math.sqrt(missing_ratio) * count)
    # Rank 0 is the greatest; holes come last.
    ranked = np.lexsort((order, np.where(known, -x, np.inf)), axis=0)
    rank = np.argsort(ranked, axis=0)
    probability = np.where(rank < at_risk, missing_ratio * count / np.maximum(at_risk, 1), 0.0)
    observed: np.ndarray = chance >= probability
    return observed


def block(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws, layout: Layout) -> np.ndarray:
    """One block of each row is missing: a patch of an image, else columns that follow each other.

    The patch has the proportions of the image, so that in square images it is a square. Sizes are whole numbers: as
    many rows have the next larger block as the ratio asks for. See ``mcar`` for the arguments.
    """
    n, d = x.shape
    height, width = (1, d) if layout.image is None else layout.image
    if layout.image is None:
        small = np.array([1, math.floor(missing_ratio * d)])
        large = small + np.array([0, 1])
    else:
        side = math.sqrt(missing_ratio)
        small = np.array([math.floor(side * height), math.floor(side * width)])
        large = small + 1
    share = (missing_ratio * d - small.prod()) / (large.prod() - small.prod())
    enlarged = rng.random((n,)).argsort() < round(share * n)
    size = np.where(enlarged[:, None], large, small)  # (n, 2)
    first = np.floor(rng.random((n, 2)) * ((height, width) - size + 1)).astype(int)
    last = first + size
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= first[:, :1]) & (rows < last[:, :1])  # (n, height)
    in_columns = (columns >= first[:, 1:]) & (columns < last[:, 1:])  # (n, width)
    observed: np.ndarray = ~(in_rows[:, :, None] & in_columns[:, None, :]).reshape(n, d)
    return observed


def landmark(x: np.ndarray, missing_ratio: float, *, rng: UniformDraws, layout: Layout) -> np.ndarray:
    """Whole points are missing, completely at random: all coordinates of a point or none.

    See ``mcar`` for the arguments.

    Raises:
        DataError: The rows are no lists of points.
    """
    n, d = x.shape
    if layout.point_dims is None:
        raise DataError(
            "data.missing.mechanism: landmark hides whole points, but this source has none; give data.point_dims with "
            "source file, take source sfm, or take mcar"
        )
    return np.repeat(rng.random((n, d // layout.point_dims)) > missing_ratio, layout.point_dims, axis=1)


MECHANISMS: dict[str, Callable[..., np.ndarray]] = {
    "mcar": mcar,
    "mar": mar,
    "mnar": mnar,
    "mnar_quantile": mnar_quantile,
    "block": block,
    "landmark": landmark,
}


def draw_mask(
    mechanism: str,
    x: np.ndarray,
    missing_ratio: float,
    *,
    seed: int,
    part: PartName,
    layout: Layout = TABLE,
) -> np.ndarray:
    """Returns the mask of one part of a dataset, bool (n, d), True = observed; the same for the same arguments.

    Cells that are NaN in ``x`` (the source's own holes) are never observed. They do not count towards the ratio; with
    ratio 0 they are all that is missing.

    Raises:
        DataError: The mechanism cannot hide so much, or nothing of this layout.
    """
    known: np.ndarray = ~np.isnan(x)
    if missing_ratio == 0:
        return known
    rng = np.random.RandomState((1000 * seed + 17 * _PART_NUMBER[part] + int(missing_ratio * 100)) % 2**32)
    mask: np.ndarray = MECHANISMS[mechanism](x, missing_ratio, rng=rng, layout=layout) & known
    return mask


def mask_sha256(mask: np.ndarray) -> str:
    """Returns the SHA-256 of a mask's shape and packed bits, as hexadecimal."""
    digest = hashlib.sha256(repr(mask.shape).encode())
    digest.update(np.packbits(np.ascontiguousarray(mask, dtype=bool)).tobytes())
    return digest.hexdigest()


def _standardised(x: np.ndarray) -> np.ndarray:
    """Returns the columns with mean 0 and variance 1, holes and constant columns 0."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, x - np.where(known, x, 0.0).sum(0) / count, 0.0)
    scale = np.sqrt((centred**2).sum(0) / count)
    return np.asarray(centred / np.where(scale > 1e-12, scale, 1.0), dtype=np.float64)


def _logistic_meeting(logits: np.ndarray, mean: float, cells: np.ndarray) -> np.ndarray:
    """Returns σ(logits + intercept) whose mean over ``cells`` is ``mean``; the intercept is found by bisection."""
    if not cells.any():
        return np.zeros(logits.shape)
    lowest, highest = -50.0 - float(logits.max()), 50.0 - float(logits.min())
    for _ in range(40):  # to within 1e-10 of it
        middle = (lowest + highest) / 2
        if _logistic(logits[cells] + middle).mean() < mean:
            lowest = middle
        else:
            highest = middle
    return _logistic(logits + (lowest + highest) / 2)


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))  # 1 / (1 + exp(-x)) without its overflow
