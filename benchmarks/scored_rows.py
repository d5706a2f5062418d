"""How well a score on a sample of the validation rows ranks configurations, against the score on all of them.

    python benchmarks/scored_rows.py [--samples 12]

Random configurations are trained on each table and scored at a ninth of the epochs, where ASHA decides first, and at
the end, in the way of a search: on the rows that vadtune takes, and on all validation rows. Printed are the Spearman
correlation of both rankings, the seconds of both scores against those of the training, the standard error of the
difference between two configurations of neighbouring rank over the gap between them (median), and the regret: how much
larger the RMSE over the missing test cells of the configuration chosen on the sample is. One thread, no Ray.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from vadtune.config import SearchFile, load_search, parse_search
from vadtune.core.metrics import score
from vadtune.data import SearchData, load_dataset
from vadtune.search.algorithms.space import draw_configurations
from vadtune.training.population import Population
from vadtune.training.scoring import Evaluation, evaluate

FILE = Path(__file__).resolve().parent.parent / "search_spaces" / "digits.yaml"
TABLES: dict[str, tuple[dict[str, Any], int]] = {
    "digits": ({"source": "digits"}, 250),
    "30,000 x 50": ({"source": "synthetic", "rows": 30_000, "width": 50, "latent": 8, "noise": 0.1}, 27),
    "20,000 x 300": ({"source": "synthetic", "rows": 20_000, "width": 300, "latent": 24, "noise": 0.1}, 27),
}


def search_of(source: dict[str, Any], epochs: int, **holdout: int) -> SearchFile:
    """Returns a search over a table, with the domains of digits.yaml for networks."""
    domains = load_search(FILE, ["search.initial=[]", "search.sampler=random"]).tree
    model = {**domains["model"], "layers": {"int": [1, 2]}}
    return parse_search(
        {
            **domains,
            "data": {**source, "missing": {"mechanism": "mcar", "ratio": 0.5}, "holdout": {"folds": 4, **holdout}},
            "model": model,
            "train": {**domains["train"], "epochs": epochs},
        }
    )


def row_errors(evaluation: Evaluation, data: SearchData, rows: int) -> np.ndarray:
    """Returns the sum of squared errors of each scored row, (rows,)."""
    residuals = (evaluation.held_out - data.validation.values) ** 2
    return np.bincount(np.nonzero(data.validation.cells)[0] % rows, weights=residuals, minlength=rows)


def error_over_gap(rmses: list[float], squares: list[np.ndarray], cells: int) -> float:
    """Returns the median over neighbours in rank of the standard error of their difference over the difference."""
    order = np.argsort(rmses)
    found = []
    for one, other in pairwise(order):
        difference = squares[other] - squares[one]
        error = np.sqrt(len(difference)) * difference.std() / cells / (rmses[one] + rmses[other])
        found.append(error / max(rmses[other] - rmses[one], 1e-12))
    return float(np.median(found))


def compare(name: str, source: dict[str, Any], epochs: int, samples: int) -> None:
    """Prints a line for each moment of scoring."""
    some, every = (load_dataset(search_of(source, epochs, **rows).data) for rows in ({}, {"rows": 10**9}))
    search = search_of(source, epochs)
    part = some.test_part(0.5, 0)
    scores: dict[tuple[str, str], list[float]] = {}
    seconds = {"training": 0.0, "some": 0.0, "every": 0.0}
    squares: dict[str, list[np.ndarray]] = {"first": [], "last": []}
    tested = []
    for sample in draw_configurations(search, samples):
        population = Population([search.trial_config(sample)], some.train)
        for moment, epoch in (("first", -(-epochs // 9)), ("last", epochs)):
            began = time.perf_counter()
            population.train_until(epoch)
            seconds["training"] += time.perf_counter() - began
            for which, dataset in (("some", some), ("every", every)):
                began = time.perf_counter()
                (evaluation,) = evaluate(population, dataset.search_data)
                seconds[which] += time.perf_counter() - began
                scores.setdefault((moment, which), []).append(evaluation.scores["val_missing_rmse"])
                if which == "some":
                    squares[moment].append(row_errors(evaluation, dataset.search_data, len(dataset.scored_rows)))
        tested.append(score(population.models()[0].reconstruct(part), some.test_truth, ~part.mask).rmse)
    cells = int(some.search_data.validation.cells.sum())
    for moment in ("first", "last"):
        chosen, best = scores[moment, "some"], scores[moment, "every"]
        print(
            f"{name:13} {moment:6} {len(some.scored_rows):6} {len(every.scored_rows):6}"
            f" {spearmanr(chosen, best)[0]:9.3f} {error_over_gap(chosen, squares[moment], cells):10.2f}"
            f" {tested[int(np.argmin(chosen))] / tested[int(np.argmin(best))] - 1:8.2%}"
            f" {seconds['training']:9.1f} {seconds['some']:7.1f} {seconds['every']:7.1f}",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12)
    samples = parser.parse_args().samples
    torch.set_num_threads(1)
    print("table         moment   rows of all  Spearman  error/gap   regret  training    some   every (seconds)")
    for name, (source, epochs) in TABLES.items():
        compare(name, source, epochs, samples)


if __name__ == "__main__":
    main()
