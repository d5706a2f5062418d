"""Where values come from.

To add a source: one loader here, one line in SOURCES, its name in config.SOURCES, and the keys of the data section that
belong to it alone in config.SOURCE_OPTIONS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vadtune.config import DataConfig
from vadtune.data.images import load_images
from vadtune.data.published import load_published
from vadtune.data.source import Layout, Source
from vadtune.data.synthetic import load_synthetic
from vadtune.data.tables import load_file


def load_digits(config: DataConfig) -> Source:
    """Returns the 1,797 handwritten digits of 8×8 pixels that ship with scikit-learn, scaled from 0–16 to 0–1."""
    from sklearn import datasets

    data = datasets.load_digits()
    return Source(data.data / 16.0, list(data.feature_names), False, Layout(image=(8, 8)))


def _table(loader: str, **options: bool) -> Callable[[DataConfig], Source]:
    def load(config: DataConfig) -> Source:
        from sklearn import datasets

        data = getattr(datasets, loader)(**options)
        return Source(np.asarray(data.data, dtype=np.float64), [str(name) for name in data.feature_names], True)

    load.__doc__ = f"Returns the table of scikit-learn's ``{loader}``."
    return load


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "digits": load_digits,
    "breast_cancer": _table("load_breast_cancer"),
    "wine": _table("load_wine"),
    "diabetes": _table("load_diabetes", scaled=False),
    "iris": _table("load_iris"),
    "file": load_file,
    "synthetic": load_synthetic,
    "mnist": load_images,
    "fashion_mnist": load_images,
    "sfm": load_published,
    "artificial": load_published,
    "mosi": load_published,
    "mosei": load_published,
}
