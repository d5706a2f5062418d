"""Imputes a table with a plugin of hyperimpute; run by accuracy.py, in an environment that has it.

    python benchmarks/hyperimpute_peer.py PLUGIN GIVEN.npy IMPUTED.npy SEED

hyperimpute 0.1.17 needs pandas 2 and scikit-learn 1.5: with pandas 3 it silently returns about the column means.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from hyperimpute.plugins.imputers import Imputers


def main() -> None:
    """Reads rows with holes, writes them filled."""
    plugin, given, imputed, seed = sys.argv[1:]
    x = pd.DataFrame(np.load(given))
    if int(pd.__version__.split(".")[0]) > 2:
        raise SystemExit(f"hyperimpute_peer: needs pandas 2, got {pd.__version__}; install pandas<3")
    filled = Imputers().get(plugin, random_state=int(seed)).fit_transform(x)
    np.save(imputed, np.asarray(filled, dtype=np.float64))


if __name__ == "__main__":
    main()
