"""Tables that ship with scikit-learn."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vadtune.data.missingness import TABLE, Layout
from vadtune.data.source import DataConfig, RawData


class BundledTable(DataConfig):
    """A table that ships with scikit-learn, in its original units; the 8×8 pixels of digits are scaled to 0–1."""

    source: Literal["digits", "breast_cancer", "wine", "diabetes", "iris"]

    def load(self) -> RawData:
        """See DataConfig."""
        from sklearn import datasets

        loaded = getattr(datasets, f"load_{self.source}")(**({"scaled": False} if self.source == "diabetes" else {}))
        x, names = np.asarray(loaded.data, dtype=np.float64), list(map(str, loaded.feature_names))
        if self.source == "digits":
            return RawData(x / 16.0, names, standardise=False, layout=Layout(image=(8, 8)))
        return RawData(x, names, standardise=True, layout=TABLE)
