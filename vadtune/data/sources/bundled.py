"""Tables that ship with scikit-learn, read from its data files.

``import sklearn.datasets`` takes 1.6 CPU seconds more, also after ``import torch``.
"""

from __future__ import annotations

import importlib.util
import warnings
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vadtune.data.layout import Layout
from vadtune.data.source import DataConfig, RawData, pixel_names

_TUMOUR = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points"),
    *("symmetry", "fractal dimension"),
)
_WINE = (
    *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids"),
    *("nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline"),
)
_CELLS = [form.format(name) for form, name in product(("mean {}", "{} error", "worst {}"), _TUMOUR)]
_DIABETES = ["age", "sex", "bmi", "bp", *(f"s{number}" for number in range(1, 7))]
_IRIS = [f"{part} (cm)" for part in ("sepal length", "sepal width", "petal length", "petal width")]


class _Table(NamedTuple):
    """A file of numbers: one column per feature, and possibly one for the target as the last."""

    file: str
    feature_names: list[str]
    delimiter: str | None
    header_lines: int


_TABLES = {
    "digits": _Table("digits.csv.gz", pixel_names(8, 8), ",", 0),
    "breast_cancer": _Table("breast_cancer.csv", _CELLS, ",", 1),
    "wine": _Table("wine_data.csv", list(_WINE), ",", 1),
    "diabetes": _Table("diabetes_data_raw.csv.gz", _DIABETES, None, 0),
    "iris": _Table("iris.csv", _IRIS, ",", 1),
}


class Digits(DataConfig):
    """The 1,797 handwritten digits of 8×8 pixels, scaled from 0–16 to 0–1."""

    source: Literal["digits"]

    def load(self) -> RawData:
        """See DataConfig."""
        x, feature_names = read_bundled(self.source)
        return RawData(x / 16.0, feature_names, False, Layout(image=(8, 8)))


class ScikitLearnTable(DataConfig):
    """A table that ships with scikit-learn, in its original units."""

    source: Literal["breast_cancer", "wine", "diabetes", "iris"]

    def load(self) -> RawData:
        """See DataConfig."""
        return RawData(*read_bundled(self.source), standardise=True)


def read_bundled(name: str) -> tuple[np.ndarray, list[str]]:
    """Returns the values, float64 (n, d), and the column names of a table, as ``sklearn.datasets`` does."""
    table = _TABLES[name]
    try:
        return _read(table), table.feature_names
    except (ImportError, OSError, EOFError, ValueError, UserWarning):  # another scikit-learn has other files
        from sklearn import datasets

        options = {"scaled": False} if name == "diabetes" else {}
        loaded = getattr(datasets, f"load_{name}")(**options)
        return np.asarray(loaded.data, dtype=np.float64), [str(feature) for feature in loaded.feature_names]


def _read(table: _Table) -> np.ndarray:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("scikit-learn is not installed as a folder")
    path, d = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / table.file, len(table.feature_names)
    with warnings.catch_warnings(action="error"):  # numpy only warns about an empty file
        values = np.loadtxt(path, delimiter=table.delimiter, skiprows=table.header_lines, ndmin=2)
    if values.shape[1] - d not in (0, 1):
        raise ValueError(f"{table.file}: must have {d} features and at most one target, got {values.shape[1]} columns")
    return np.ascontiguousarray(values[:, :d])
