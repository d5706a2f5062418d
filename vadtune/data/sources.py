"""Where complete values come from.

To add a source: one loader here, one line in SOURCES, its name in config.SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
    """Values as a source gives them.

    Attributes:
        x: float64 (n, d), in the source's own units, which scores called ``_original`` use; NaN where the source
            itself has a hole.
        feature_names: One name per column.
        standardise: Whether columns are brought to mean 0 and variance 1 for training. Images are not: their pixels
            share one scale already, and border pixels hardly vary at all.
    """

    x: np.ndarray
    feature_names: list[str]
    standardise: bool


def load_digits() -> Source:
    """Returns the 1,797 handwritten digits of 8×8 pixels that ship with scikit-learn, scaled from 0–16 to 0–1."""
    from sklearn import datasets

    data = datasets.load_digits()
    return Source(data.data / 16.0, list(data.feature_names), standardise=False)


def _table(loader: str, **options: bool) -> Callable[[], Source]:
    def load() -> Source:
        from sklearn import datasets

        data = getattr(datasets, loader)(**options)
        return Source(np.asarray(data.data, dtype=np.float64), [str(name) for name in data.feature_names], True)

    load.__doc__ = f"Returns the table of scikit-learn's ``{loader}``."
    return load


SOURCES: dict[str, Callable[[], Source]] = {
    "digits": load_digits,
    "breast_cancer": _table("load_breast_cancer"),
    "wine": _table("load_wine"),
    "diabetes": _table("load_diabetes", scaled=False),
    "iris": _table("load_iris"),
}
