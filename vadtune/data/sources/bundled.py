"""Tables that ship with scikit-learn, read from its data files.

``import sklearn.datasets`` takes SECONDS s, more than anything else that happens before a search starts Ray.
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
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


class _Table(NamedTuple):
    """A file of numbers: one column per feature, and possibly one for the target as the last."""

    file: str
    feature_names: list[str]
    delimiter: str | None = ","
    heading: int = 1  # lines


_TABLES = {
    "digits": _Table("digits.csv.gz", pixel_names(8, 8), heading=0),
    "breast_cancer": _Table(
        "breast_cancer.csv",
        [form.format(name) for form, name in product(("mean {}", "{} error", "worst {}"), _TUMOUR)],
    ),
    "wine": _Table("wine_data.csv", list(_WINE)),
    "diabetes": _Table(
        "diabetes_data_raw.csv.gz",
        ["age", "sex", "bmi", "bp", *(f"s{number}" for number in range(1, 7))],
        delimiter=None,
        heading=0,
    ),
    "iris": _Table(
        "iris.csv", [f"{part} (cm)" for part in ("sepal length", "sepal width", "petal length", "petal width")]
    ),
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
    except (ImportError, OSError, EOFError, ValueError, zlib.error):  # another scikit-learn keeps other files
        from sklearn import datasets

        options = {"scaled": False} if name == "diabetes" else {}
        loaded = getattr(datasets, f"load_{name}")(**options)
        return np.asarray(loaded.data, dtype=np.float64), [str(feature) for feature in loaded.feature_names]


def _read(table: _Table) -> np.ndarray:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("scikit-learn is not installed as a folder")
    content = (Path(spec.submodule_search_locations[0]) / "datasets" / "data" / table.file).read_bytes()
    text = gzip.decompress(content) if table.file.endswith(".gz") else content
    lines, d = text.decode().splitlines()[table.heading :], len(table.feature_names)
    values = np.loadtxt(lines, delimiter=table.delimiter, ndmin=2) if lines else np.empty((0, 0))
    if values.shape[1] - d not in (0, 1):
        raise ValueError(f"{table.file}: must have {d} features and at most one target, got {values.shape[1]} columns")
    return np.ascontiguousarray(values[:, :d])
