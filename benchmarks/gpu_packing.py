"""Configurations trained per second on one GPU: packs of 1, 16 and 64, same step.

    python benchmarks/gpu_packing.py [--rows 60000] [--epochs 3]

64 configurations (decoder 50-100-100-784, learned posteriors, batch 128, half of the cells missing) train for some
epochs, in packs of each size. Needs only torch, numpy and pydantic. The last line is the ratio of packs of 64 to one at
a time. For each size the table gives the share of the device's measured memory bandwidth and matrix rate that a step
uses, counting weights with moments and gradients as traffic and matrix products as arithmetic.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vadtune.config import TrialConfig
from vadtune.data import MaskedRows
from vadtune.training.population import Population

LATENT, HIDDEN, FEATURES, BATCH, CONFIGS = 50, 100, 784, 128, 64
WEIGHTS = (LATENT + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * FEATURES


def config(index: int) -> TrialConfig:
    """Returns one of the configurations, all of one shape."""
    return TrialConfig.model_validate(
        {
            "name": "pack",
            "data": {"source": "digits"},
            "model": {"latent": LATENT, "hidden": HIDDEN, "layers": 2},
            "train": {"epochs": 100, "batch_size": BATCH, "kl_weight": 0.01 * (index + 1), "latent_init": "normal"},
        }
    )


def seconds_per_epoch(train: MaskedRows, p: int, epochs: int, device: str) -> float:
    """Returns the seconds that one configuration's epoch takes in a pack of p; epochs of one pack stand for all."""
    pack = Population([config(index) for index in range(p)], train, device)
    pack.train_epoch()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(epochs):
        pack.train_epoch()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / epochs / p


def device_limits(device: str) -> tuple[float, float]:
    """Returns bytes per second of a copy and float32 operations per second of a matrix product."""
    large = torch.empty(2**28, device=device)
    target = torch.empty_like(large)
    square = torch.randn(8192, 8192, device=device)
    rates = []
    works: list[tuple[Callable[[], Tensor], int]] = [
        (lambda: target.copy_(large), 2 * 4 * 2**28),
        (lambda: square @ square, 2 * 8192**3),
    ]
    for work, amount in works:
        work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        rates.append(10 * amount / (time.perf_counter() - start))
    return rates[0], rates[1]


def main() -> None:
    """Runs all sizes in turn and prints a table, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_packing: needs a GPU, and torch finds none")
    rng = np.random.default_rng(0)
    shape = args.rows, FEATURES
    train = MaskedRows(rng.random(shape, np.float32), rng.random(shape) > 0.5)
    bandwidth, products = device_limits("cuda")
    steps = math.ceil(args.rows / BATCH)
    print(f"{torch.cuda.get_device_name()}: {bandwidth / 1e9:.0f} GB/s, {products / 1e12:.1f} TFLOP/s in float32")
    print("  P   ms a model-step   configurations a minute (100 epochs)   share of bandwidth   of products")
    found = {}
    for p in (1, 16, CONFIGS):
        found[p] = seconds_per_epoch(train, p, args.epochs, "cuda")
        step = found[p] / steps
        traffic, arithmetic = 4 * 7 * WEIGHTS / step / bandwidth, 6 * BATCH * WEIGHTS / step / products
        rate = 60 / (100 * found[p])
        print(f"{p:3} {1e3 * step:17.4f} {rate:38.2f} {traffic:20.1%} {arithmetic:13.1%}", flush=True)
    print(f"ratio: {found[1] / found[CONFIGS]:.1f}")


if __name__ == "__main__":
    main()
