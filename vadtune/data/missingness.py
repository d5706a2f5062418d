"""Missingness mechanisms: the options of each, and how it draws a mask.

To add a mechanism: one class here, one line in MECHANISMS.

A mask is bool with True = observed. Masks of a dataset are a function of (mask seed, part, ratio) and, for some
mechanisms, of the values, by numpy's legacy generator, whose stream is frozen. For mcar:

    RandomState(1000 * seed + 17 * part + int(100 * ratio)).rand(n, d) > ratio

The published comparison figures for these datasets use the same recipe, so scores compare cell for cell.

No library draws them: pygrinder works on series (samples, steps, features) and draws from numpy's global generator;
pyampute hides cells row by row by patterns and had its last release in 2022.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag

from vadtune.core.errors import DataError
from vadtune.core.schema import FilePath, Real, Seed, SparseSection, by_tag
from vadtune.data.row_blocks import row_blocks
from vadtune.tables import read_table

PartName = Literal["train", "validation", "test"]
_PART_NUMBER: dict[PartName, int] = {"train": 0, "validation": 1, "test": 2}
_DRIVERS = 0.3  # share of the columns that mar leaves observed, if the ratio permits
_SLOPE = 2.0  # of the logistic curves, per standard deviation


class Layout(NamedTuple):
    """How the columns of a row belong together.

    Attributes:
        image: Height and width if a row is an image, stored pixel row by pixel row; else None.
        point_dims: Columns per point if a row is a list of points (x, y, x, y, ...); else None.
    """

    image: tuple[int, int] | None = None
    point_dims: int | None = None


TABLE = Layout()
"""Columns without any arrangement."""


class MissingConfig(SparseSection):
    """Options of a mechanism: which cells are hidden, in addition to those that are missing in the source."""

    mechanism: str
    ratio: Annotated[Real, Field(ge=0, lt=1, description="share of cells missing")] = 0.5
    seed: Seed = 0


class StoredMask(MissingConfig):
    """The mask is read: from a file of the user, or from the files of a source that includes masks."""

    mechanism: Literal["file"]
    path: FilePath | None = None


class DrawnMask(MissingConfig):
    """Base of the mechanisms that draw masks."""

    @abstractmethod
    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """Draws a mask.

        Args:
            x: Values (n, d), NaN where they are missing in the source.
            missing_ratio: Expected share of missing cells, in (0, 1).
            rng: Source of all random draws.
            layout: How columns belong together.

        Returns:
            bool (n, d), True = observed.

        Raises:
            DataError: The mechanism cannot hide so much, or does not apply to this layout.
        """


class Mcar(DrawnMask):
    """Missing completely at random: each cell is missing with probability ``ratio``, whatever its value."""

    mechanism: Literal["mcar"] = "mcar"

    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """See DrawnMask."""
        observed = np.empty(x.shape, dtype=bool)
        for block in row_blocks(*x.shape):  # the same draws as all at once
            observed[block] = rng.random(observed[block].shape) > missing_ratio
        return observed


class Mar(DrawnMask):
    """Missing at random: some columns are always observed; a logistic curve in them decides which others are missing.

    The always observed columns and their weights are the same for every part, ratio and seed of a dataset; higher
    ratios leave fewer of them.
    """

    mechanism: Literal["mar"] = "mar"

    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """See DrawnMask."""
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
        ratio_of_others = missing_ratio * d / len(others)
        probability = _logistic_with_mean(_SLOPE * logits, ratio_of_others, np.ones(logits.shape, bool))
        observed = np.ones(x.shape, dtype=bool)
        observed[:, others] = rng.random(logits.shape) >= probability
        return observed


class Mnar(DrawnMask):
    """Missing not at random: the higher a value within its column, the likelier it is missing, by a logistic curve."""

    mechanism: Literal["mnar"] = "mnar"

    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """See DrawnMask."""
        probability = _logistic_with_mean(_SLOPE * _standardised(x), missing_ratio, ~np.isnan(x))
        observed: np.ndarray = rng.random(x.shape) >= probability
        return observed


class MnarQuantile(DrawnMask):
    """Self-masking by quantile: only values in the upper part of their column can be missing.

    The upper part is a share √ratio of the column's values, and each of them is missing with probability √ratio: with
    ratio .25, half of the upper half. Ties are broken at random.
    """

    mechanism: Literal["mnar_quantile"] = "mnar_quantile"

    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """See DrawnMask."""
        chance, order = rng.random(x.shape), rng.random(x.shape)
        known = ~np.isnan(x)
        count = known.sum(0)  # (d,)
        at_risk = np.ceil(math.sqrt(missing_ratio) * count)
        # Rank 0 is the highest value; missing values come last.
        ranked = np.lexsort((order, np.where(known, -x, np.inf)), axis=0)
        rank = np.argsort(ranked, axis=0)
        probability = np.where(rank < at_risk, missing_ratio * count / np.maximum(at_risk, 1), 0.0)
        observed: np.ndarray = chance >= probability
        return observed


class Block(DrawnMask):
    """One block of each row is missing: a patch of an image, else consecutive columns.

    The patch has the proportions of the image. Sizes are whole numbers: the share of rows that get the next larger
    block is chosen so that the ratio is met.
    """

    mechanism: Literal["block"] = "block"

    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """See DrawnMask."""
        n, d = x.shape
        height, width = layout.image or (1, d)
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


class Landmark(DrawnMask):
    """Whole points are missing, completely at random: all coordinates of a point or none."""

    mechanism: Literal["landmark"] = "landmark"

    def draw(self, x: np.ndarray, missing_ratio: float, *, rng: np.random.RandomState, layout: Layout) -> np.ndarray:
        """See DrawnMask."""
        n, d = x.shape
        if layout.point_dims is None:
            raise DataError(
                "data.missing.mechanism: landmark hides whole points, but this source has none; give data.point_dims "
                "with source file, take source sfm, or take mcar"
            )
        return np.repeat(rng.random((n, d // layout.point_dims)) > missing_ratio, layout.point_dims, axis=1)


MECHANISMS: dict[str, type[MissingConfig]] = by_tag(
    "mechanism", Mcar, Mar, Mnar, MnarQuantile, Block, Landmark, StoredMask
)


def _mechanism(value: Any) -> Any:
    return value.get("mechanism", "mcar") if isinstance(value, dict) else getattr(value, "mechanism", None)


def _expanded(value: object) -> object:
    return {"mechanism": "mcar", "ratio": 0.0} if value == "none" else value


if TYPE_CHECKING:
    AnyMissingConfig = MissingConfig
else:
    AnyMissingConfig = Annotated[
        Union[tuple(Annotated[model, Tag(name)] for name, model in MECHANISMS.items())],  # noqa: UP007
        Discriminator(_mechanism),
        BeforeValidator(_expanded),
    ]
"""The options of any mechanism, mcar by default. ``none`` stands for ratio 0: only what is missing in the source."""


def draw_mask(
    mechanism: MissingConfig, x: np.ndarray, missing_ratio: float, *, seed: int, part: PartName, layout: Layout = TABLE
) -> np.ndarray:
    """Draws the mask of one part of a dataset, bool (n, d), True = observed; the same for the same arguments.

    Cells that are NaN in ``x`` are never observed. They do not count towards the ratio; with ratio 0 they are all that
    is missing. ``missing_ratio`` and ``seed`` replace those of the mechanism's options.

    Raises:
        DataError: As for ``DrawnMask.draw``; also if the mechanism draws no masks.
    """
    known: np.ndarray = ~np.isnan(x)
    if missing_ratio == 0:
        return known
    if not isinstance(mechanism, DrawnMask):
        raise DataError(
            f"data.missing.mechanism: {mechanism.mechanism} with ratio {mechanism.ratio:g} has no mask of ratio "
            f"{missing_ratio:g}; name a mechanism that draws masks"
        )
    rng = np.random.RandomState((1000 * seed + 17 * _PART_NUMBER[part] + int(missing_ratio * 100)) % 2**32)
    mask = mechanism.draw(x, missing_ratio, rng=rng, layout=layout)
    mask &= known
    return mask


def read_mask(path: Path, shape: tuple[int, ...], names: Sequence[str]) -> np.ndarray:
    """Reads a mask file: a table of 1 or true (observed) and 0 or false (missing), one row per row of the data.

    Args:
        path: As for ``read_table``.
        shape: Shape of the data (n, d).
        names: Columns of the data. A file with column names must have the same ones, in any order.

    Returns:
        bool (n, d), True = observed.

    Raises:
        DataError: The file cannot be read, or has another shape or other values.
    """
    columns = None if path.suffix.lower() in (".npy", ".npz") else names
    return as_mask(read_table(path, columns, booleans=True).x, shape, str(path))


def as_mask(values: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Converts zeros and ones to a mask, bool, True = observed.

    Args:
        values: Numbers.
        shape: The expected shape.
        where: What the error message starts with.

    Raises:
        DataError: The shape differs, or a value is neither 0 nor 1.
    """
    if values.shape != shape:
        raise DataError(f"{where}: a mask of shape {shape} is needed, as the data has, got {values.shape}")
    strange = values[~np.isin(values, (0, 1))]
    if strange.size:
        raise DataError(f"{where}: a mask holds 1 (observed) and 0 (missing) only, got {strange.flat[0]:g}")
    return values.astype(bool)


def mask_sha256(mask: np.ndarray) -> str:
    """Returns the SHA-256 of a mask's shape and packed bits, as hexadecimal."""
    digest = hashlib.sha256(repr(mask.shape).encode())
    digest.update(np.packbits(np.ascontiguousarray(mask, dtype=bool)).tobytes())
    return digest.hexdigest()


def _standardised(x: np.ndarray) -> np.ndarray:
    """Returns the columns with mean 0 and variance 1; missing cells and constant columns are 0."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, x - np.where(known, x, 0.0).sum(0) / count, 0.0)
    scale = np.sqrt((centred**2).sum(0) / count)
    return np.asarray(centred / np.where(scale > 1e-12, scale, 1.0), dtype=np.float64)


def _logistic_with_mean(logits: np.ndarray, mean: float, cells: np.ndarray) -> np.ndarray:
    """Returns σ(logits + intercept), the intercept chosen so that the mean over ``cells`` is ``mean``."""
    from scipy.optimize import bisect
    from scipy.special import expit

    if not cells.any():
        return np.zeros(logits.shape)
    intercept = bisect(
        lambda intercept: expit(logits[cells] + intercept).mean() - min(mean, 1.0),
        -50.0 - float(logits.max()),
        50.0 - float(logits.min()),
        xtol=1e-11,
    )
    return np.asarray(expit(logits + intercept))
