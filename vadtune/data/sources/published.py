"""The HDF5 files of the published VAD experiments: mnist, fashion_mnist, sfm, artificial, mosi, mosei.

``path`` is a prefix. PREFIX.h5 holds complete rows and PREFIX_0.5.h5 the same rows with half of the cells missing:

    source                   in PREFIX.h5                 in PREFIX_<ratio>.h5
    mnist, fashion_mnist     train_x, test_x              train_y, train_mask, test_y, test_mask, test_y_true
    artificial, mosi, mosei  train_data, test_data        train_y, train_mask, test_y, test_mask, test_y_true
    sfm                      train_2d, valid_2d, test_2d  these and train_mask, valid_mask, test_mask

A mask is 1 where a cell is observed, in sfm where a landmark is. Missing cells hold sentinels (-100, -10), which
nothing here looks at: the mask rules. Images are 0 to 255. PREFIX.h5 of sfm may have masks as well: holes whose values
nobody knows. What is missing from PREFIX_<ratio>.h5 of sfm is known where PREFIX.h5 has it.

The mechanism ``file`` takes the masks of these files; every other one draws new masks of the complete rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.config.schema import STORED, DataConfig, MissingConfig
from vadtune.core.errors import DataError
from vadtune.data.sources.own_table import as_mask
from vadtune.data.sources.source import TABLE, Layout, PartName, Source, pixel_names, split_of_train_rows

_MOST_UNPACKED = 1100  # times the size of a file; deflate, which packs best, does not reach that
_IMAGES = ("mnist", "fashion_mnist")
_PREFIXES: dict[PartName, str] = {"train": "train", "validation": "valid", "test": "test"}


class _Rows(NamedTuple):
    """Rows of one file.

    Attributes:
        x: Floats (n, ...), NaN where a value is not known.
        mask: bool, the shape of x, True = observed.
    """

    x: np.ndarray
    mask: np.ndarray


def load_published(config: DataConfig) -> Source:
    """Returns the rows of the published files, with their split and their masks.

    Raises:
        DataError: A file or a dataset in it is not there, or they do not fit together.
    """
    assert config.path is not None
    files = _Files(config.source, Path(config.path.removesuffix(".h5")))

    def rows(missing: MissingConfig) -> dict[PartName, _Rows]:
        stored = missing.mechanism == STORED and missing.ratio > 0
        return files.of_ratio(missing.ratio) if stored else files.complete

    given = rows(config.missing)
    of_train = given if config.train_missing is None else rows(config.train_missing)
    if not _agree(of_train["validation"].x, given["validation"].x):
        raise DataError(
            f"{config.path}: the files of data.missing and data.train_missing must hold the same rows, got others; "
            "download them again"
        )
    parts = {"train": of_train["train"].x, "validation": given["validation"].x, "test": given["test"].x}
    shapes = {values.shape[1:] for values in parts.values()}
    if len(shapes) > 1:
        raise DataError(f"{config.path}: rows of all parts must have one shape, got {sorted(shapes)}")
    x = np.concatenate([values.reshape(len(values), -1) for values in parts.values()])
    ends = np.cumsum([len(values) for values in parts.values()])
    names, layout = _columns(config.source, shapes.pop())
    flat_truth = parts["test"].reshape(len(parts["test"]), -1)

    @lru_cache(maxsize=1)  # train, validation and test rows are asked for one after the other
    def stored_mask(ratio: float) -> np.ndarray:
        of_ratio = files.of_ratio(ratio)
        masks = [of_ratio[part].mask.reshape(len(of_ratio[part].mask), -1) for part in _PREFIXES]
        mask = np.concatenate(masks)
        truth = of_ratio["test"].x.reshape(len(of_ratio["test"].x), -1)
        if mask.shape != x.shape or not _agree(truth, flat_truth):
            raise DataError(f"{files.path_of(ratio)}: holds other rows than the files that were trained on")
        return mask

    return Source(
        x=x,
        feature_names=names,
        standardise=config.source not in _IMAGES,
        layout=layout,
        split=dict(zip(_PREFIXES, np.split(np.arange(len(x)), ends[:-1]), strict=True)),
        stored_mask=stored_mask,
    )


@dataclass(frozen=True)
class _Files:
    """The files of one prefix."""

    source: str
    prefix: Path

    @cached_property
    def complete_path(self) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.h5")

    @cached_property
    def ratios(self) -> dict[float, Path]:
        """The files with holes by their missing ratio, ascending."""
        found = {}
        for path in self.prefix.parent.glob(f"{self.prefix.name}_*.h5"):
            try:
                found[float(path.stem.removeprefix(f"{self.prefix.name}_"))] = path
            except ValueError:
                continue  # of another prefix that starts likewise
        return dict(sorted(found.items()))

    def path_of(self, ratio: float) -> Path:
        if ratio not in self.ratios:
            there = ", ".join(f"{known:g}" for known in self.ratios) or "none"
            raise DataError(f"{self.prefix}_{ratio:g}.h5: there is no such file; ratios that have one: {there}")
        return self.ratios[ratio]

    @cached_property
    def complete(self) -> dict[PartName, _Rows]:
        """The rows without holes, but for those of sfm that nobody knows."""
        if not self.complete_path.exists():
            there = ", ".join(f"{known:g}" for known in self.ratios) or "none"
            raise DataError(
                f"{self.complete_path}: there is no such file, which complete rows and drawn masks need; with "
                f"data.missing.mechanism=file the masks are those of the files beside it, of ratios: {there}"
            )
        if self.source == "sfm":
            return self._landmarks(self.complete_path, with_masks=False)
        kind = "x" if self.source in _IMAGES else "data"
        arrays = _read(self.complete_path, f"train_{kind}", f"test_{kind}")
        return self._with_validation(*(_Rows(self._scaled(x), np.ones(x.shape, bool)) for x in arrays))

    def of_ratio(self, ratio: float) -> dict[PartName, _Rows]:
        """The rows of PREFIX_<ratio>.h5. Where rows are complete, so are the values of its test rows."""
        path = self.path_of(ratio)
        if self.source == "sfm":
            rows = self._landmarks(path, with_masks=True)
            if not self.complete_path.exists():
                return rows
            for part, (x, mask) in rows.items():
                if self.complete[part].x.shape != x.shape or not _agree(self.complete[part].x, x):
                    raise DataError(f"{path}: its {part} rows must be those of {self.complete_path}, got others")
                rows[part] = _Rows(self.complete[part].x if part == "test" else x, mask)
            return rows
        names = ("train_y", "train_mask", "test_y", "test_mask", "test_y_true")
        train, train_mask, test, test_mask, truth = _read(path, *names)
        if truth.shape != test.shape:
            raise DataError(f"{path}: test_y and test_y_true must have one shape, got {test.shape} and {truth.shape}")
        observed = as_mask(train_mask, train.shape, f"{path}: train_mask")
        train = np.where(observed, self._scaled(train), np.nan)
        test_observed = as_mask(test_mask, test.shape, f"{path}: test_mask")
        return self._with_validation(_Rows(train, observed), _Rows(self._scaled(truth), test_observed))

    def _with_validation(self, train: _Rows, test: _Rows) -> dict[PartName, _Rows]:
        """These sources have no validation rows: some of the train rows are taken."""
        train_rows, validation_rows = split_of_train_rows(len(train.x))
        return {
            "train": _Rows(train.x[train_rows], train.mask[train_rows]),
            "validation": _Rows(train.x[validation_rows], train.mask[validation_rows]),
            "test": test,
        }

    def _landmarks(self, path: Path, *, with_masks: bool) -> dict[PartName, _Rows]:
        rows: dict[PartName, _Rows] = {}
        for part, name in _PREFIXES.items():
            (points,) = _read(path, f"{name}_2d")
            if points.ndim != 3:
                raise DataError(f"{path}: {name}_2d must be (rows, landmarks, coordinates), got shape {points.shape}")
            masks = _read(path, f"{name}_mask", needed=with_masks)
            mask = np.ones(points.shape, bool)
            if masks:
                mask &= as_mask(masks[0], points.shape[:-1], f"{path}: {name}_mask")[..., None]
            rows[part] = _Rows(np.where(mask, points, np.nan), mask)
        return rows

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32) / 255 if self.source in _IMAGES else x.astype(np.float64)


def _read(path: Path, *names: str, needed: bool = True) -> list[np.ndarray]:
    """Returns datasets of a file; those that are not there are an error, or left out where they are not needed."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            lacking = [name for name in names if not isinstance(file.get(name), h5py.Dataset)]
            if lacking and needed:
                there = ", ".join(sorted(file)) or "nothing"
                raise DataError(f"{path}: needs the datasets {', '.join(lacking)} as well, got {there}")
            found = [name for name in names if name not in lacking]
            if sum(file[name].nbytes for name in found) > _MOST_UNPACKED * path.stat().st_size:
                raise OSError("it says it holds more than its bytes can")
            arrays = {name: file[name][()] for name in found}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read as HDF5 ({' '.join(str(error).split())}); download it again"
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.ndim < 2:
            raise DataError(f"{path}: {name} must be numbers in rows, got {np.asarray(array).dtype} {np.shape(array)}")
    return list(arrays.values())


def _columns(source: str, shape: tuple[int, ...]) -> tuple[list[str], Layout]:
    """Returns the names of the columns and how they belong together, for rows of this shape."""
    d = int(np.prod(shape))
    if source == "sfm":
        points, dims = shape
        axes = "xyz" if dims <= 3 else [f"c{axis}_" for axis in range(dims)]
        return [f"{axes[axis]}{point}" for point in range(points) for axis in range(dims)], Layout(point_dims=dims)
    if source in _IMAGES:
        sides = [side for side in shape if side != 1]
        if len(sides) == 1:
            sides = [round(d**0.5)] * 2
        if len(sides) == 2 and sides[0] * sides[1] == d:
            return pixel_names(*sides), Layout(image=(sides[0], sides[1]))
    return [f"x{i}" for i in range(d)], TABLE


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether values are equal wherever both are known."""
    if one.shape != other.shape:
        return False
    known = ~(np.isnan(one) | np.isnan(other))
    return bool(np.allclose(one[known], other[known], rtol=1e-5, atol=1e-8))
