"""What a trial costs the search around it, as searches grow: tiny models, everything else real (Ray, Optuna, MLflow).

    python benchmarks/driver_cost.py [--sizes 64 256 1024]

Wall seconds for each trial and for each report, one Ray for all sizes, a warm-up search first. The last line is the
cost of a trial in the largest search over that in the one before.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

from vadtune.config import parse_search
from vadtune.search.driver.ray_start import local_ray
from vadtune.search.driver.start import start_search
from vadtune.tracking.queries import list_trials, resolve_search
from vadtune.tracking.store import connect


def search_of(samples: int) -> dict[str, Any]:
    """Returns a search of tiny trials with three reports each."""
    return {
        "name": f"tiny{samples}",
        "data": {"source": "iris", "missing": {"ratio": 0.3}},
        "model": {"latent": 2, "layers": 0},
        "train": {"epochs": 9, "kl_weight": {"loguniform": [0.05, 1]}, "net_lr": {"loguniform": [1e-3, 1e-2]}},
        "infer": {"steps": 10, "lr": {"loguniform": [0.1, 0.25]}},
        "search": {"samples": samples, "grace_epochs": 1, "pack": 1},
    }


def main() -> None:
    """Runs the searches and prints a table, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    sizes = parser.parse_args().sizes
    logging.disable(logging.WARNING)
    costs = []
    print("trials   seconds   ms a trial   ms a report")
    with tempfile.TemporaryDirectory() as scratch, local_ray():
        uri = f"sqlite:///{Path(scratch) / 'mlflow.db'}"
        for warm_up, samples in [(True, 8), *((False, size) for size in sizes)]:
            outcome = start_search(parse_search(search_of(samples)), storage=Path(scratch), tracking_uri=uri)
            if warm_up:
                continue
            client = connect(uri)
            trials = list_trials(client, resolve_search(client, uri, outcome.run))
            reports = sum({1: 1, 3: 2}.get(trial.epoch, 3) for trial in trials)
            costs.append(outcome.seconds / samples)
            print(
                f"{samples:6} {outcome.seconds:9.1f} {1e3 * costs[-1]:12.1f} {1e3 * outcome.seconds / reports:13.1f}",
                flush=True,
            )
    print(f"ratio: {costs[-1] / costs[-2]:.2f}")


if __name__ == "__main__":
    main()
