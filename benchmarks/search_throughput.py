"""A whole search, from the command to its end, against plain Ray Tune scripts of the same search.

    python benchmarks/search_throughput.py [--samples 64] [--rounds 1]

`vadtune search search_spaces/digits.yaml`, with MLflow, is timed in turn with the two scripts of plain_search.py. What
is compared is the wall time per 1,000 epochs trained, because each search stops other trials, the same weighted by the
weights of each trial's decoder, because each search tries other sizes, and the wall time of the whole search. Takes
about fifteen minutes with 64 configurations on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from vadtune.config import load_search
from vadtune.data import load_dataset
from vadtune.search.algorithms.trial_clock import decoder_weights

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "search_spaces" / "digits.yaml"


class Run(NamedTuple):
    """What a search took and did."""

    seconds: float
    epochs: int
    work: float  # epochs times weights of the decoder, over all trials
    best: float  # validation score


FIGURES: tuple[Callable[[Run], float], ...] = (
    lambda run: run.seconds,
    lambda run: run.seconds / run.epochs,
    lambda run: run.seconds / run.work,
)


def run_vadtune(folder: Path, samples: int) -> Run:
    """Runs the command."""
    command = [sys.executable, "-m", "vadtune"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "search", str(FILE), f"search.samples={samples}"], cwd=folder, check=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    results = [*command, "results", "digits", "--format", "json"]
    done = subprocess.run(results, cwd=folder, check=True, capture_output=True)
    rows = json.loads(done.stdout)
    search = load_search(FILE)
    columns = load_dataset(search.data).train.x.shape[1]
    work = 0.0
    for row in rows:
        sample = {key: row[key] for key in search.domains if row.get(key) is not None}
        work += row["epoch"] * decoder_weights(search.trial_config(sample).model, columns)
    return Run(seconds, sum(row["epoch"] for row in rows), work, rows[0]["val_missing_rmse"])


def run_script(kind: str, folder: Path, samples: int) -> Run:
    """Runs a plain script."""
    script = [sys.executable, str(ROOT / "benchmarks" / "plain_search.py"), kind, str(FILE), str(folder)]
    start = time.perf_counter()
    done = subprocess.run([*script, "--samples", str(samples)], cwd=folder, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return Run(seconds, result["epochs"], result["work"], result["best"])


def main() -> None:
    """Runs all three in turn and prints a table, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    runs: dict[str, list[Run]] = {}
    print("search     wall s   epochs   s per 1,000 epochs   weights of an epoch   best val_missing_rmse")
    for _ in range(args.rounds):
        for name in ("vadtune", "tuned", "plain"):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                is_vadtune = name == "vadtune"
                found = run_vadtune(folder, args.samples) if is_vadtune else run_script(name, folder, args.samples)
            runs.setdefault(name, []).append(found)
            each, size = found.seconds / found.epochs * 1000, found.work / found.epochs
            print(
                f"{name:8} {found.seconds:8.1f} {found.epochs:8} {each:20.1f} {size:21.0f} {found.best:23.4f}",
                flush=True,
            )
    for script in ("tuned", "plain"):
        whole, epoch, weighted = (
            median(map(figure, runs[script])) / median(map(figure, runs["vadtune"])) for figure in FIGURES
        )
        print(f"against the {script} script: {whole:.1f}x whole, {epoch:.1f}x per epoch, {weighted:.1f}x per weight")
    print(f"ratio to the plain script, per epoch and weight: {weighted:.2f}")


if __name__ == "__main__":
    main()
