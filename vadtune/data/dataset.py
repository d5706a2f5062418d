"""IncompleteDataset: values, masks, and which rows and cells a search may see.

Three walls keep selection honest. Values of missing cells are removed (NaN) from the parts that train and infer. A
search receives a SearchData, which holds no test row at all. Validation is scored on *observed* validation cells that
were hidden on purpose, so that it works the same on data whose missing cells nobody knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.config.schema import STORED, DataConfig, HoldoutConfig, MissingConfig
from vadtune.core.errors import ConfigError, DataError, unknown_name
from vadtune.data.missingness import draw_mask, mask_sha256
from vadtune.data.scaler import Scaler
from vadtune.data.sources import SOURCES
from vadtune.data.sources.own_table import read_mask
from vadtune.data.sources.source import TABLE, Layout, PartName, Source

logger = logging.getLogger(__name__)

# The split of the published comparison figures: a permutation cut at 70 % and 85 %.
_SPLIT_SEED = 0
_TRAIN_END, _VALIDATION_END = 0.7, 0.85
_GREATEST = 1e30  # squares of greater values are beyond 32-bit floats
_RATIO_TOLERANCE = 0.01  # between the ratio that is named and that of a stored mask


class MaskedRows(NamedTuple):
    """Rows with holes.

    Attributes:
        x: float32 (n, d), in the scaler's units, NaN where not observed.
        mask: bool (n, d), True = observed.
    """

    x: np.ndarray
    mask: np.ndarray

    @classmethod
    def hide(cls, x: np.ndarray, mask: np.ndarray) -> MaskedRows:
        """Returns the rows with every cell outside ``mask`` removed."""
        return cls(np.where(mask, x, np.nan).astype(np.float32), mask)

    def of_rows(self, rows: np.ndarray) -> MaskedRows:
        """Returns some of the rows, given by their indices or as booleans."""
        return MaskedRows(self.x[rows], self.mask[rows])


class HeldOut(NamedTuple):
    """Validation rows with observed cells hidden, f folds stacked along the rows.

    Attributes:
        visible: MaskedRows of (f*n, d): what inference may see.
        truth: float32 (f*n, d): values of observed validation cells, NaN elsewhere.
        cells: bool (f*n, d): the held-out observed cells, to be scored. Every observed validation cell is held out in
            exactly one fold.
    """

    visible: MaskedRows
    truth: np.ndarray
    cells: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The true values of the held-out cells, float32 (c,), in the order of ``np.nonzero(cells)``."""
        values: np.ndarray = self.truth[self.cells]
        return values

    def of_rows(self, rows: np.ndarray, n: int) -> HeldOut:
        """Returns what is about some of the n rows, given by their indices."""
        taken = (np.arange(0, len(self.cells), n)[:, None] + rows).ravel()
        return HeldOut(self.visible.of_rows(taken), self.truth[taken], self.cells[taken])


class SearchData(NamedTuple):
    """All a search sees. Holds no test row and no truly missing cell."""

    train: MaskedRows
    validation: HeldOut


@dataclass(frozen=True)
class IncompleteDataset:
    """A dataset with missing cells, split into train, validation and test rows.

    Attributes:
        config: The section of the configuration that made it.
        feature_names: One name per column.
        scaler: Fitted on the observed cells of the train rows only.
        train: The train rows, as models see them.
        validation: The validation rows, as models see them.
        test_truth: float32 (n_test, d), in the scaler's units, NaN where the source itself has a hole. Sealed: nothing
            but a retest reads it.
    """

    config: DataConfig
    feature_names: list[str]
    scaler: Scaler
    train: MaskedRows
    validation: MaskedRows
    test_truth: np.ndarray
    layout: Layout = TABLE
    stored_test_mask: Callable[[float], np.ndarray] | None = None

    @cached_property
    def search_data(self) -> SearchData:
        """What a search may see, with the hold-outs of ``config.holdout``."""
        return SearchData(self.train, hold_out(self.validation, self.config.holdout, seed=self.config.missing.seed))

    @property
    def mask_hashes(self) -> dict[str, str]:
        """The SHA-256 of the masks that models are trained and selected on, to be recorded with what comes of them."""
        return {"train": mask_sha256(self.train.mask), "validation": mask_sha256(self.validation.mask)}

    def own_test_mask(self) -> np.ndarray:
        """Returns the mask of the test rows at the ratio, and of the mask seed, that ``config.missing`` names."""
        seed = 0 if self.stored_test_mask is not None else self.config.missing.seed
        return self.test_mask(self.config.missing.ratio, seed)

    def rows_of_refit(self, refit: str) -> MaskedRows:
        """Returns the rows that models are trained on by one of ``config.REFITS``; never a missing cell's value."""
        parts = [self.train]
        if refit in ("train+validation", "all-observed"):
            parts.append(self.validation)
        if refit == "all-observed":
            parts.append(MaskedRows.hide(self.test_truth, self.own_test_mask()))
        return MaskedRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def test_mask(self, missing_ratio: float, seed: int) -> np.ndarray:
        """Returns a mask of the test rows, bool (n_test, d), True = observed; the same for the same arguments.

        Raises:
            DataError: Masks are stored, and there is none of this ratio, or a second one of it is asked for.
        """
        if self.stored_test_mask is None:
            mechanism = self.config.missing.mechanism
            return draw_mask(mechanism, self.test_truth, missing_ratio, seed=seed, part="test", layout=self.layout)
        if seed:
            raise DataError(
                f"data.missing: {self.config.source} has one stored mask for each ratio, got mask seed {seed}; "
                "retest with --seeds 1, or search with a mechanism that draws masks"
            )
        mask: np.ndarray = self.stored_test_mask(missing_ratio) & ~np.isnan(self.test_truth)
        return mask

    def test_part(self, missing_ratio: float, seed: int) -> MaskedRows:
        """Returns the test rows under the mask of this ratio and mask seed."""
        return MaskedRows.hide(self.test_truth, self.test_mask(missing_ratio, seed))


def hold_out(part: MaskedRows, config: HoldoutConfig, *, seed: int) -> HeldOut:
    """Deals the observed cells into folds and hides each fold once, given the others.

    Every row deals its cells out evenly, from a fold of its own on: a fold takes its share of each row, so that
    inference is left with as much of a row as the folds promise, and folds are of about equal size. A row with a single
    observed cell is predicted once from nothing.

    Args:
        part: Rows with holes (n, d).
        config: The number of folds.
        seed: Same seed, same cells.

    Returns:
        The folds stacked along the rows, fold after fold.
    """
    folds = config.folds
    rng = np.random.default_rng([seed, 1])
    keys = np.where(part.mask, rng.random(part.mask.shape), np.inf)
    rank = keys.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")  # of a cell among those of its row
    fold = (rank + rng.integers(folds, size=(len(keys), 1))) % folds
    cells = np.concatenate([part.mask & (fold == index) for index in range(folds)])
    x = np.tile(part.x, (folds, 1))
    visible = MaskedRows.hide(x, np.tile(part.mask, (folds, 1)) & ~cells)
    return HeldOut(visible, x, cells)


def load_dataset(config: DataConfig) -> IncompleteDataset:
    """Loads a source, splits its rows and hides cells as the configuration says.

    Raises:
        ConfigError: The source or mechanism is unknown.
        DataError: The data cannot be used: unreadable, infinite, too few rows, or no cell left to score.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"data.source: {unknown_name('source', config.source, SOURCES)}")
    source = SOURCES[config.source](config)
    x = source.x
    n, d = x.shape
    rows = source.split or _split(n)
    if min(map(len, rows.values())) == 0:
        raise DataError(f"data.source: {config.source} has {n} rows, too few for train, validation and test rows")
    _check_values(source, rows["train"], config)
    of_ratio = _stored_mask(source, config.missing)
    of_train_ratio = of_ratio if config.train_missing is None else _stored_mask(source, config.train_missing)

    def mask_of(part: PartName, missing: MissingConfig, of_ratio: Callable[[float], np.ndarray] | None) -> np.ndarray:
        if of_ratio is not None:
            mask: np.ndarray = of_ratio(missing.ratio)[rows[part]] & ~np.isnan(x[rows[part]])
            return mask
        return draw_mask(
            missing.mechanism, x[rows[part]], missing.ratio, seed=missing.seed, part=part, layout=source.layout
        )

    train_mask = mask_of("train", config.missing_in_train, of_train_ratio)
    validation_mask = mask_of("validation", config.missing, of_ratio)
    scaler = Scaler.identity(d)
    if source.standardise:
        scaler = Scaler.fit(x[rows["train"]], train_mask, one_scale=source.layout != TABLE)
    dataset = IncompleteDataset(
        config=config,
        feature_names=source.feature_names,
        scaler=scaler,
        train=MaskedRows.hide(scaler.transform(x[rows["train"]]), train_mask),
        validation=MaskedRows.hide(scaler.transform(x[rows["validation"]]), validation_mask),
        test_truth=scaler.transform(x[rows["test"]]),
        layout=source.layout,
        stored_test_mask=None if of_ratio is None else lambda ratio: of_ratio(ratio)[rows["test"]],
    )
    held_out = dataset.search_data.validation
    if not (train_mask.any() and (held_out.cells.any(1) & held_out.visible.mask.any(1)).any()):
        raise DataError(
            "data: needs observed cells to train on, and a validation row with one to hold out and one to infer from, "
            f"but missing.ratio {config.missing.ratio} leaves none in {config.source} ({n} rows, {d} columns); lower "
            "the ratio, or get more rows"
        )
    return dataset


def _split(n: int) -> dict[PartName, np.ndarray]:
    order = np.random.RandomState(_SPLIT_SEED).permutation(n)
    train, validation, test = np.split(order, [int(_TRAIN_END * n), int(_VALIDATION_END * n)])
    return {"train": train, "validation": validation, "test": test}


def _check_values(source: Source, train_rows: np.ndarray, config: DataConfig) -> None:
    """Checks what no model could learn from, and tells of rows that say nothing.

    Raises:
        DataError: A column holds infinities or nothing, or nothing is missing although nothing is to be hidden.
    """
    where = config.path or config.source

    def named(columns: np.ndarray) -> str:
        names = [source.feature_names[index] for index in np.flatnonzero(columns)]
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    known = ~np.isnan(source.x)
    with np.errstate(invalid="ignore"):
        infinite = (np.abs(source.x) > _GREATEST).any(0)
    if infinite.any():
        raise DataError(
            f"{where}: values must be finite and below {_GREATEST:g}, columns {named(infinite)} hold others"
        )
    if not known.any(0).all():
        raise DataError(f"{where}: columns {named(~known.any(0))} have no value at all; leave them out")
    empty = ~known[train_rows].any(0)
    if empty.any():
        raise DataError(f"{where}: columns {named(empty)} have no value in the train rows; leave them out")
    if config.missing.ratio == 0 and known.all():
        raise DataError(f"data.missing.ratio: 0 hides nothing, and {where} has no holes of its own; take one above 0")
    empty_rows = int((~known.any(1)).sum())
    if empty_rows:
        logger.warning(
            "%s: %d of %d rows have no value at all; they get the prior's mean", where, empty_rows, len(known)
        )


def _stored_mask(source: Source, missing: MissingConfig) -> Callable[[float], np.ndarray] | None:
    """Returns what gives the stored mask (n, d) of a ratio; None where masks are drawn."""
    if missing.mechanism != STORED or missing.ratio == 0:
        return None
    if source.stored_mask is not None:
        return source.stored_mask
    assert missing.path is not None
    path = missing.path
    mask = read_mask(Path(path), source.x.shape, source.feature_names)
    actual = float(1 - mask.mean())

    def of_ratio(ratio: float) -> np.ndarray:
        if abs(ratio - actual) > _RATIO_TOLERANCE:
            raise DataError(f"{path}: hides {actual:.3f} of the cells, got ratio {ratio:g}; name {actual:.2f}")
        return mask

    return of_ratio
