"""Imputes a table with a plugin of hyperimpute; accuracy.py runs it in an environment where hyperimpute is installed.

    python benchmarks/hyperimpute_peer.py PLUGIN GIVEN.npy IMPUTED.npy SEED

hyperimpute 0.1.17 needs pandas 2 and scikit-learn 1.5: with pandas 3 it silently returns about the column means. Its
HyperImpute searches a model for each column, its GAIN has the package's defaults. Its MIWAE has one latent
dimension and one hidden unit by default and returns a draw, so it gets the sizes of its paper (Mattei & Frellsen 2019)
and the mean of several draws.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
from hyperimpute.plugins.imputers import Imputers

SETTINGS: dict[str, dict[str, Any]] = {
    "hyperimpute": {},
    "miwae": {"latent_size": 10, "n_hidden": 128, "n_epochs": 500},
    "gain": {},
}
_DRAWS = {"miwae": 20}


def main() -> None:
    """Reads rows with missing cells and writes them completed."""
    name, given, imputed, seed = sys.argv[1:]
    if int(pd.__version__.split(".")[0]) > 2:
        raise SystemExit(f"hyperimpute_peer: needs pandas 2, got {pd.__version__}; install pandas<3")
    x = np.load(given)
    offset, scale = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    frame = pd.DataFrame((x - offset) / scale)
    plugin = Imputers().get(name, random_state=int(seed), **SETTINGS[name])
    draws = [np.asarray(plugin.fit_transform(frame), dtype=np.float64)]
    draws += [np.asarray(plugin.transform(frame), dtype=np.float64) for _ in range(_DRAWS.get(name, 1) - 1)]
    np.save(imputed, np.mean(draws, axis=0) * scale + offset)


if __name__ == "__main__":
    main()
