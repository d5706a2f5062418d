"""A whole search, from the command to its end, against plain Ray Tune scripts of the same search.

    python benchmarks/search_throughput.py [--samples 64] [--rounds 1]

`vadtune search search_spaces/digits.yaml`, with MLflow, is timed in turn with the two scripts of plain_search.py. What
is compared is the wall time per 1,000 epochs trained, because each search stops other trials, and the wall time of the
whole search. Takes about ten minutes with 64 configurations on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "search_spaces" / "digits.yaml"


def run_vadtune(folder: Path, samples: int) -> tuple[float, int, float]:
    """Returns seconds, epochs trained and the best validation score."""
    command = [sys.executable, "-m", "vadtune"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "search", str(FILE), f"search.samples={samples}"], cwd=folder, check=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    results = [*command, "results", "digits", "--format", "json"]
    done = subprocess.run(results, cwd=folder, check=True, capture_output=True)
    rows = json.loads(done.stdout)
    return seconds, sum(row["epoch"] for row in rows), rows[0]["val_missing_rmse"]


def run_script(kind: str, folder: Path, samples: int) -> tuple[float, int, float]:
    """Runs a plain script; returns seconds, epochs trained and the best validation score."""
    script = [sys.executable, str(ROOT / "benchmarks" / "plain_search.py"), kind, str(FILE), str(folder)]
    start = time.perf_counter()
    done = subprocess.run([*script, "--samples", str(samples)], cwd=folder, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, result["epochs"], result["best"]


def main() -> None:
    """Runs all three in turn and prints a table, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {}
    wholes: dict[str, list[float]] = {}
    print("search     wall s   epochs   s per 1,000 epochs   best val_missing_rmse")
    for _ in range(args.rounds):
        for name in ("vadtune", "tuned", "plain"):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                is_vadtune = name == "vadtune"
                found = run_vadtune(folder, args.samples) if is_vadtune else run_script(name, folder, args.samples)
            seconds, epochs, best = found
            rates.setdefault(name, []).append(seconds / epochs * 1000)
            wholes.setdefault(name, []).append(seconds)
            print(f"{name:8} {seconds:8.1f} {epochs:8} {rates[name][-1]:20.1f} {best:23.4f}", flush=True)
    for script in ("tuned", "plain"):
        whole = median(wholes[script]) / median(wholes["vadtune"])
        rate = median(rates[script]) / median(rates["vadtune"])
        print(f"against the {script} script: {whole:.1f}x whole, {rate:.1f}x per epoch")
    print(f"ratio to the plain script, per epoch: {median(rates['plain']) / median(rates['vadtune']):.2f}")


if __name__ == "__main__":
    main()
