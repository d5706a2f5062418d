"""Compares the model quality of vadtune's trainer with a plain training loop, for the same configurations and epochs.

    python benchmarks/quality.py [--samples 8] [--seeds 5]

For each of several search seeds, configurations drawn at random from search_spaces/digits.yaml are trained for all its
epochs by vadtune and by the plain loop of plain_search.py (autograd, one dense Adam over the decoder and all rows). For
either side the configuration of the lowest RMSE over held-out validation cells is chosen, as in a search, and printed
with its RMSE over the missing cells of the test rows. One process, one thread, no Ray: about eight minutes. The last
line is the mean difference of the test errors, fast minus plain, with the standard deviation of either side over seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from plain_search import train

from vadtune.config import SearchFile, load_search
from vadtune.core.metrics import score
from vadtune.data import IncompleteDataset, MaskedRows, load_dataset
from vadtune.search.algorithms.space import draw_configurations
from vadtune.training.population import Population

FILE = Path(__file__).resolve().parent.parent / "search_spaces" / "digits.yaml"


class Found(NamedTuple):
    """RMSE over held-out validation cells and over the missing cells of the test rows, in the scaler's units."""

    validation: float
    test: float


def scored(reconstruct: Callable[[MaskedRows], np.ndarray], dataset: IncompleteDataset) -> Found:
    """Returns the errors of a model."""
    visible, truth, cells = dataset.search_data.validation
    part = dataset.test_part(dataset.config.missing.ratio, 0)
    return Found(
        score(reconstruct(visible), truth, cells).rmse, score(reconstruct(part), dataset.test_truth, ~part.mask).rmse
    )


def fast(sample: dict[str, Any], dataset: IncompleteDataset, search: SearchFile) -> Found:
    """Trains as a search does."""
    config = search.trial_config(sample)
    population = Population([config], dataset.train)
    population.train_until(config.train.epochs)
    return scored(population.models()[0].reconstruct, dataset)


def plain(sample: dict[str, Any], dataset: IncompleteDataset, search: SearchFile) -> Found:
    """Trains as the published code does."""
    ((_, reconstruct),) = train(sample, dataset.search_data, search, reports=1)
    return scored(reconstruct, dataset)


def main() -> None:
    """Runs both sides for every seed and prints a table, then the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    best: dict[str, list[Found]] = {"fast": [], "plain": []}
    print("seed    fast: validation     test   seconds    plain: validation     test   seconds")
    for seed in range(args.seeds):
        search = load_search(FILE, [f"search.seed={seed}", "search.sampler=random", "search.initial=[]"])
        dataset = load_dataset(search.data)
        samples = draw_configurations(search, args.samples)
        line = f"{seed:4}"
        for name, way in (("fast", fast), ("plain", plain)):
            start = time.perf_counter()
            best[name].append(min(way(sample, dataset, search) for sample in samples))
            line += f" {best[name][-1].validation:19.4f} {best[name][-1].test:8.4f} {time.perf_counter() - start:9.1f}"
        print(line, flush=True)
    for name in Found._fields:
        fast_errors, plain_errors = ([getattr(found, name) for found in best[side]] for side in ("fast", "plain"))
        gaps = [a - b for a, b in zip(fast_errors, plain_errors, strict=True)]
        print(
            f"{name} error: fast {mean(fast_errors):.4f} ± {stdev(fast_errors):.4f}, "
            f"plain {mean(plain_errors):.4f} ± {stdev(plain_errors):.4f}, "
            f"difference {mean(gaps):+.4f} ± {stdev(gaps) / len(gaps) ** 0.5:.4f}"
        )


if __name__ == "__main__":
    main()
