"""Loads a dataset: reads the source, splits its rows, hides cells and checks that something can be learnt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vadtune.core.errors import DataError
from vadtune.data.dataset import IncompleteDataset, MaskedRows
from vadtune.data.missingness import TABLE, MissingConfig, PartName, StoredMask, draw_mask, read_mask
from vadtune.data.scaler import Scaler
from vadtune.data.source import DataConfig, RawData

logger = logging.getLogger(__name__)

# The split of the published comparison figures: a permutation cut at 70 % and 85 %.
_SPLIT_SEED = 0
_TRAIN_END, _VALIDATION_END = 0.7, 0.85
_MAX_VALUE = 1e30  # squares of larger values overflow 32-bit floats
_RATIO_TOLERANCE = 0.01  # between the configured ratio and that of a stored mask


def load_dataset(config: DataConfig) -> IncompleteDataset:
    """Loads a source, splits its rows and hides cells as the configuration says.

    Raises:
        DataError: The data cannot be used: unreadable, infinite, too few rows, or no cell left to score.
    """
    raw = config.load()
    x = raw.x
    n, d = x.shape
    rows = raw.split or _split(n)
    if min(map(len, rows.values())) == 0:
        raise DataError(f"data.source: {config.source} has {n} rows, too few for train, validation and test rows")
    _check_values(raw, rows["train"], config)
    stored = _stored_mask(raw, config.missing)
    stored_for_train = stored if config.train_missing is None else _stored_mask(raw, config.train_missing)

    def mask_of(part: PartName, missing: MissingConfig, stored: Callable[[float], np.ndarray] | None) -> np.ndarray:
        values = x[rows[part]]
        if stored is not None:
            mask: np.ndarray = stored(missing.ratio)[rows[part]] & ~np.isnan(values)
            return mask
        return draw_mask(missing, values, missing.ratio, seed=missing.seed, part=part, layout=raw.layout)

    train_mask = mask_of("train", config.missing_in_train, stored_for_train)
    validation_mask = mask_of("validation", config.missing, stored)
    scaler = Scaler.identity(d)
    if raw.standardise:
        scaler = Scaler.fit(x[rows["train"]], train_mask, one_scale=raw.layout != TABLE)
    dataset = IncompleteDataset(
        config=config,
        feature_names=raw.feature_names,
        scaler=scaler,
        train=MaskedRows.hide(scaler.transform(x[rows["train"]]), train_mask),
        validation=MaskedRows.hide(scaler.transform(x[rows["validation"]]), validation_mask),
        test_truth=scaler.transform(x[rows["test"]]),
        layout=raw.layout,
        stored_test_mask=None if stored is None else lambda ratio: stored(ratio)[rows["test"]],
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


def _check_values(raw: RawData, train_rows: np.ndarray, config: DataConfig) -> None:
    """Checks that something can be learnt from every column, and warns about rows without values.

    Raises:
        DataError: A column has infinities or no values, or nothing is missing and nothing will be hidden.
    """

    def named(columns: np.ndarray) -> str:
        names = [raw.feature_names[index] for index in np.flatnonzero(columns)]
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    known = ~np.isnan(raw.x)
    with np.errstate(invalid="ignore"):
        infinite = (np.abs(raw.x) > _MAX_VALUE).any(0)
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
