"""Where values come from.

To add a source: one loader here, one line in SOURCES, its name in config.SOURCES, and the keys of the data section that
belong to it alone in config.SOURCE_OPTIONS.
"""

from __future__ import annotations

from collections.abc import Callable

from vadtune.config.schema import DataConfig
from vadtune.data.sources.bundled import read_bundled
from vadtune.data.sources.images import load_images
from vadtune.data.sources.own_table import load_file
from vadtune.data.sources.published import load_published
from vadtune.data.sources.source import Layout, Source
from vadtune.data.sources.synthetic import load_synthetic


def load_digits(config: DataConfig) -> Source:
    """Returns the 1,797 handwritten digits of 8×8 pixels that ship with scikit-learn, scaled from 0–16 to 0–1."""
    x, feature_names = read_bundled(config.source)
    return Source(x / 16.0, feature_names, False, Layout(image=(8, 8)))


def load_table(config: DataConfig) -> Source:
    """Returns a table that ships with scikit-learn, in its own units."""
    return Source(*read_bundled(config.source), standardise=True)


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "digits": load_digits,
    "breast_cancer": load_table,
    "wine": load_table,
    "diabetes": load_table,
    "iris": load_table,
    "file": load_file,
    "synthetic": load_synthetic,
    "mnist": load_images,
    "fashion_mnist": load_images,
    "sfm": load_published,
    "artificial": load_published,
    "mosi": load_published,
    "mosei": load_published,
}
