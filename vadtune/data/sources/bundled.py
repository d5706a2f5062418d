"""Tables that ship with scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vadtune.data.missingness import TABLE, Layout
from vadtune.data.source import DataConfig, RawData, pixel_names

_TUMOUR = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points"),
    *("symmetry", "fractal dimension"),
)
_WINE = (
    *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids"),
    *("nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline"),
)


class _File(NamedTuple):
    """A file of scikit-learn; behind the features there may be a column for the target."""

    name: str
    features: list[str]
    delimiter: str | None = ","
    heading: int = 1  # lines


_FILES = {
    "digits": _File("digits.csv.gz", pixel_names(8, 8), heading=0),
    "breast_cancer": _File(
        "breast_cancer.csv", [form.format(name) for form, name in product(("mean {}", "{} error", "worst {}"), _TUMOUR)]
    ),
    "wine": _File("wine_data.csv", list(_WINE)),
    "diabetes": _File(
        "diabetes_data_raw.csv.gz",
        ["age", "sex", "bmi", "bp", *(f"s{number}" for number in range(1, 7))],
        delimiter=None,
        heading=0,
    ),
    "iris": _File(
        "iris.csv", [f"{part} (cm)" for part in ("sepal length", "sepal width", "petal length", "petal width")]
    ),
}


class BundledTable(DataConfig):
    """A table that ships with scikit-learn, in its original units; the 8×8 pixels of digits are scaled to 0–1.

    Its file is read without scikit-learn, whose import takes a second of a search's start.
    """

    source: Literal["digits", "breast_cancer", "wine", "diabetes", "iris"]

    def load(self) -> RawData:
        """See DataConfig."""
        x, names = _read(self.source)
        if self.source == "digits":
            return RawData(x / 16.0, names, standardise=False, layout=Layout(image=(8, 8)))
        return RawData(x, names, standardise=True, layout=TABLE)


def _read(source: str) -> tuple[np.ndarray, list[str]]:
    """Returns the values of a table, float64 (n, d), and its columns' names, as scikit-learn's own loader does."""
    file = _FILES[source]
    try:
        return _numbers(file), file.features
    except (ImportError, OSError, EOFError, ValueError, zlib.error):  # its files are not where, or what, they were
        from sklearn import datasets

        loaded = getattr(datasets, f"load_{source}")(**({"scaled": False} if source == "diabetes" else {}))
        return np.asarray(loaded.data, dtype=np.float64), list(map(str, loaded.feature_names))


def _numbers(file: _File) -> np.ndarray:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("scikit-learn is not here as a folder")
    content = (Path(spec.submodule_search_locations[0]) / "datasets" / "data" / file.name).read_bytes()
    text = gzip.decompress(content) if file.name.endswith(".gz") else content
    lines, d = text.decode().splitlines()[file.heading :], len(file.features)
    values = np.loadtxt(lines, delimiter=file.delimiter, ndmin=2)
    if values.shape[1] - d not in (0, 1):
        raise ValueError(f"{file.name}: must have {d} features, and perhaps a target, got {values.shape[1]} columns")
    return np.ascontiguousarray(values[:, :d])
