"""Loads a dataset: reads the source, splits its rows, hides cells and checks that something can be learnt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.sampling import sample_rows
from vadtune.data.dataset import IncompleteDataset, MaskedRows
from vadtune.data.missingness import TABLE, MissingConfig, PartName, StoredMask, draw_mask, read_mask
from vadtune.data.row_blocks import row_blocks
from vadtune.data.scaler import Scaler
from vadtune.data.source import DataConfig, RawData

logger = logging.getLogger(__name__)

# The split of the published comparison figures: a permutation cut at 70 % and 85 %.
_SPLIT_SEED = 0
_TRAIN_END, _VALIDATION_END = 0.7, 0.85
MOST_TRAIN_ROWS = 100_000
"""Train rows of a search by default: a random sample, if there are more. Its column means are within 1/300 standard
deviation of those of all rows, while the time of an epoch and of an evaluation grows with every row."""
_MAX_VALUE = 1e30  # squares of larger values overflow 32-bit floats
_RATIO_TOLERANCE = 0.01  # between the configured ratio and that of a stored mask


def load_dataset(config: DataConfig, raw: RawData | None = None) -> IncompleteDataset:
    """Loads a source, splits its rows and hides cells as the configuration says.

    Args:
        config: The data section.
        raw: What ``config.load()`` returned, if it was called before.

    Raises:
        DataError: The data cannot be used: unreadable, infinite, too few rows, or no cell left to score.
    """
    raw = config.load() if raw is None else raw
    n, d = raw.x.shape
    rows = raw.split or _split(n)
    if min(map(len, rows.values())) == 0:
        raise DataError(f"data.source: {config.source} has {n} rows, too few for train, validation and test rows")
    _check_values(raw, rows["train"], config)
    stored = _stored_mask(raw, config.missing)
    stored_for_train = stored if config.train_missing is None else _stored_mask(raw, config.train_missing)
    train_mask = _mask_of(raw, rows["train"], "train", config.missing_in_train, stored_for_train)
    validation_mask = _mask_of(raw, rows["validation"], "validation", config.missing, stored)
    scaler = Scaler.identity(d)
    if raw.standardise:
        scaler = Scaler.fit_rows(raw.x, rows["train"], train_mask, one_scale=raw.layout != TABLE)
    all_train = MaskedRows.scaled(raw.x, rows["train"], train_mask, scaler)
    sample = sampled_rows(len(train_mask), config.sample)
    test_rows = rows["test"]
    dataset = IncompleteDataset(
        config=config,
        feature_names=raw.feature_names,
        scaler=scaler,
        train=all_train if sample is None else all_train.of_rows(sample),
        all_train=all_train,
        validation=MaskedRows.scaled(raw.x, rows["validation"], validation_mask, scaler),
        test_truth=MaskedRows.scaled(raw.x, test_rows, np.ones((len(test_rows), d), dtype=bool), scaler).x,
        layout=raw.layout,
        stored_test_mask=None if stored is None else lambda ratio: stored(ratio)[test_rows],
    )
    del raw  # of large tables, before the hold-outs need as much
    held_out = dataset.search_data.validation
    if not (dataset.train.mask.any() and (held_out.cells.any(1) & held_out.visible.mask.any(1)).any()):
        raise DataError(
            "data: needs observed cells to train on, and a validation row with one to hold out and one to infer from, "
            f"but missing.ratio {config.missing.ratio} leaves none in {config.source} ({n} rows, {d} columns); lower "
            "the ratio, or get more rows"
        )
    return dataset


def sampled_rows(n: int, sample: int | str | None) -> np.ndarray | None:
    """Returns the indices of the train rows that a search trains on, ascending; None for all ``n``.

    Args:
        n: Number of train rows.
        sample: ``data.sample``. A smaller sample is a part of each larger one.
    """
    most = MOST_TRAIN_ROWS if sample is None else n if isinstance(sample, str) else sample
    return None if n <= most else sample_rows(n, most)


def _mask_of(
    raw: RawData, rows: np.ndarray, part: PartName, missing: MissingConfig, stored: Callable[[float], np.ndarray] | None
) -> np.ndarray:
    """Returns the mask of some rows of one part, bool (rows, d)."""
    if stored is not None:
        mask: np.ndarray = stored(missing.ratio)[rows] & ~np.isnan(raw.x[rows])
        return mask
    return draw_mask(missing, raw.x[rows], missing.ratio, seed=missing.seed, part=part, layout=raw.layout)


def _split(n: int) -> dict[PartName, np.ndarray]:
    order = np.random.RandomState(_SPLIT_SEED).permutation(n)
    train, validation, test = np.split(order, [int(_TRAIN_END * n), int(_VALIDATION_END * n)])
    return {"train": train, "validation": validation, "test": test}


def _check_values(raw: RawData, train_rows: np.ndarray, config: DataConfig) -> None:
    """Checks that something can be learnt from every column, and warns about rows without values.

    Raises:
        DataError: A column has infinities or no values, or nothing is missing and nothing will be hidden.
    """

    def named(columns: np.ndarray) -> str:
        names = [raw.feature_names[index] for index in np.flatnonzero(columns)]
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    known = ~np.isnan(raw.x)
    infinite = np.zeros(raw.x.shape[1], dtype=bool)
    with np.errstate(invalid="ignore"):
        for block in row_blocks(*raw.x.shape):
            infinite |= (np.abs(raw.x[block]) > _MAX_VALUE).any(0)
    if infinite.any():
        raise DataError(
            f"{config.origin}: values must be finite and below {_MAX_VALUE:g}, columns {named(infinite)} hold others"
        )
    if not known.any(0).all():
        raise DataError(f"{config.origin}: columns {named(~known.any(0))} have no value at all; leave them out")
    empty = ~known[train_rows].any(0)
    if empty.any():
        raise DataError(f"{config.origin}: columns {named(empty)} have no value in the train rows; leave them out")
    if config.missing.ratio == 0 and known.all():
        raise DataError(
            f"data.missing.ratio: 0 hides nothing, and {config.origin} has no missing values; name a ratio above 0"
        )
    empty_rows = int((~known.any(1)).sum())
    if empty_rows:
        logger.warning(
            "%s: %d of %d rows have no value at all; the prior's mean is imputed", config.origin, empty_rows, len(known)
        )


def _stored_mask(raw: RawData, missing: MissingConfig) -> Callable[[float], np.ndarray] | None:
    """Returns a function from a missing ratio to its stored mask (n, d); None where masks are drawn."""
    if not isinstance(missing, StoredMask) or missing.ratio == 0:
        return None
    if missing.path is None:
        return raw.stored_mask
    path = missing.path
    mask = read_mask(Path(path), raw.x.shape, raw.feature_names)
    actual = float(1 - mask.mean())

    def of_ratio(ratio: float) -> np.ndarray:
        if abs(ratio - actual) > _RATIO_TOLERANCE:
            raise DataError(f"{path}: hides {actual:.3f} of the cells, got ratio {ratio:g}; name {actual:.2f}")
        return mask

    return of_ratio
