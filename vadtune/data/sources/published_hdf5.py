"""The HDF5 files of the published VAD experiments: mnist, fashion_mnist, sfm, artificial, mosi, mosei.

``path`` is a prefix. PREFIX.h5 holds complete rows and PREFIX_0.5.h5 the same rows with half of the cells missing:

    source                   in PREFIX.h5                 in PREFIX_<ratio>.h5
    mnist, fashion_mnist     train_x, test_x              train_y, train_mask, test_y, test_mask, test_y_true
    artificial, mosi, mosei  train_data, test_data        train_y, train_mask, test_y, test_mask, test_y_true
    sfm                      train_2d, valid_2d, test_2d  these and train_mask, valid_mask, test_mask

A mask is 1 where a cell is observed, for sfm where a landmark is. Missing cells hold sentinels (-100, -10), which are
ignored: the mask decides. Images are 0 to 255. PREFIX.h5 of sfm may have masks too, of landmarks whose positions are
unknown. Values that are missing in PREFIX_<ratio>.h5 of sfm are taken from PREFIX.h5.

The mechanism ``file`` uses the masks of these files; all others draw masks of the complete rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from vadtune.core.errors import DataError
from vadtune.core.extras import require
from vadtune.core.reading import check_expansion, check_regular
from vadtune.core.schema import FilePath
from vadtune.core.text import one_line
from vadtune.data.missingness import TABLE, Layout, MissingConfig, PartName, StoredMask, as_mask
from vadtune.data.source import DataConfig, RawData, pixel_names, split_train_rows

_MOST_NAMED = 20
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


class PublishedFiles(DataConfig):
    """Base of the sources that are read from these files only; ``path`` is their prefix."""

    has_stored_masks: ClassVar[bool] = True

    path: FilePath

    @property
    def origin(self) -> str:
        """The prefix of the files."""
        return self.path

    def load(self) -> RawData:
        """See DataConfig."""
        return load_published(self, self.path)


class PublishedTable(PublishedFiles):
    """A published table."""

    source: Literal["artificial", "mosi", "mosei"]


class PublishedLandmarks(PublishedFiles):
    """The published landmarks for structure from motion; the positions of some may be unknown."""

    may_be_incomplete: ClassVar[bool] = True

    source: Literal["sfm"]


def load_published(config: DataConfig, path: str) -> RawData:
    """Reads the rows of the published files with prefix ``path``, with their split and masks.

    Raises:
        DataError: A file or a dataset in it does not exist, or they do not fit together.
    """
    files = _Files(config.source, Path(path.removesuffix(".h5")))

    def rows(missing: MissingConfig) -> dict[PartName, _Rows]:
        stored = isinstance(missing, StoredMask) and missing.ratio > 0
        return files.of_ratio(missing.ratio) if stored else files.complete

    incomplete = rows(config.missing)
    of_train = incomplete if config.train_missing is None else rows(config.train_missing)
    if not _agree(of_train["validation"].x, incomplete["validation"].x):
        raise DataError(
            f"{path}: the files of data.missing and data.train_missing must hold the same rows, got others; "
            "download them again"
        )
    parts = {"train": of_train["train"].x, "validation": incomplete["validation"].x, "test": incomplete["test"].x}
    shapes = {values.shape[1:] for values in parts.values()}
    if len(shapes) > 1:
        raise DataError(f"{path}: rows of all parts must have one shape, got {sorted(shapes)}")
    x = np.concatenate([values.reshape(len(values), -1) for values in parts.values()])
    ends = np.cumsum([len(values) for values in parts.values()])
    names, layout = _columns(config.source, shapes.pop())
    flat_truth = parts["test"].reshape(len(parts["test"]), -1)

    @lru_cache(maxsize=1)  # train, validation and test rows are requested one after the other
    def stored_mask(ratio: float) -> np.ndarray:
        of_ratio = files.of_ratio(ratio)
        masks = [of_ratio[part].mask.reshape(len(of_ratio[part].mask), -1) for part in _PREFIXES]
        mask = np.concatenate(masks)
        truth = of_ratio["test"].x.reshape(len(of_ratio["test"].x), -1)
        if mask.shape != x.shape or not _agree(truth, flat_truth):
            raise DataError(f"{files.path_of(ratio)}: holds other rows than the files that were trained on")
        return mask

    return RawData(
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
        """The incomplete files by their missing ratio, ascending."""
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
        """The rows of PREFIX.h5; only landmarks of sfm may be missing."""
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
        """The rows of PREFIX_<ratio>.h5; the values of the test rows are complete as far as they are known."""
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
        """Splits validation rows off the train rows: these sources have none."""
        train_rows, validation_rows = split_train_rows(len(train.x))
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
    """Reads datasets of a file; absent ones are an error, or are left out if not ``needed``."""
    h5py = require("h5py", "hdf5", f"{path}: the HDF5 format")
    try:
        size = check_regular(path)
        with h5py.File(path, "r") as file:
            # Links are looked at, not followed: they may lead to other files.
            there = set(file)
            found = [name for name in names if name in there and _is_dataset(file, name)]
            lacking = [name for name in names if name not in found]
            if lacking and needed:
                got = one_line(", ".join(sorted(there)[:_MOST_NAMED]), 300) or "nothing"
                raise DataError(f"{path}: needs the datasets {', '.join(lacking)} as well, got {got}")
            for name in found:
                _check_dataset(file[name], f"{path}: {name}")
            check_expansion(sum(max(file[name].nbytes, _chunk_bytes(file[name])) for name in found), size)
            arrays = {name: file[name][()] for name in found}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = one_line(" ".join(str(getattr(error, "strerror", None) or error).split()), 300)
        raise DataError(f"{path}: cannot be read as HDF5 ({reason}); download it again") from error
    with np.errstate(invalid="ignore"):  # damaged bytes may form signalling NaNs, which warn in every operation
        return [
            np.where(np.isnan(array), np.nan, array) if array.dtype.kind == "f" else array for array in arrays.values()
        ]


def _is_dataset(file: Any, name: str) -> bool:
    """Whether a file itself holds a dataset; raises OSError if a link leads elsewhere."""
    h5py = require("h5py", "hdf5", "the HDF5 format")
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise OSError(f"{name} is a {type(link).__name__}, which may lead to another file")
    return isinstance(file[name], h5py.Dataset)


def _check_dataset(dataset: Any, where: str) -> None:
    """Checks, before it is read, that a dataset holds numbers in rows, in this file."""
    if dataset.is_virtual or dataset.external:
        raise OSError(f"the values of {where} are in other files")
    if dataset.dtype.kind not in "biuf" or dataset.dtype.subdtype is not None or len(dataset.shape or ()) < 2:
        raise DataError(f"{where} must be numbers in rows, got {dataset.dtype} {dataset.shape}")


def _chunk_bytes(dataset: Any) -> int:
    """Returns the bytes of a chunk, which is unpacked as a whole however few of its values exist."""
    return math.prod(dataset.chunks or (0,)) * int(dataset.dtype.itemsize)


def _columns(source: str, shape: tuple[int, ...]) -> tuple[list[str], Layout]:
    """Returns the column names and the layout of rows of this shape."""
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


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays have one shape and nearly equal values wherever neither is NaN."""
    if a.shape != b.shape:
        return False
    known = ~(np.isnan(a) | np.isnan(b))
    return bool(np.allclose(a[known], b[known], rtol=1e-5, atol=1e-8))
