"""Milliseconds per model-step: a Population against the published VAD code's training loop, written out plainly.

    python benchmarks/packed_step.py [--precision bf16] [--compile on]

Decoder 50-100-100-D, learned posteriors, half of the cells missing, one thread. Both sides are timed in turn, several
times over; the medians are compared. Time is this process's own, so that other work on the machine matters less. The
floors are the time of the matrix products of a step alone: by PyTorch, and as they are done here.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vadtune.config.schema import TrialConfig
from vadtune.data import MaskedRows
from vadtune.models.products import by_openblas, product, use_threads
from vadtune.training.population import Population

LATENT, HIDDEN, LAYERS = 50, 100, 2
# (features, batch size, rows, speed-up to reach at the best P, at P = 1)
SETTINGS = [(64, 32, 1257, 9.0, 4.0), (784, 32, 1257, 5.0, 4.0), (64, 128, 1257, None, None)]
SETTINGS += [(784, 128, 1257, None, None), (64, 32, 20_000, 30.0, None), (784, 32, 20_000, 30.0, None)]
MEMBERS = (1, 4, 16, 64)


class PlainLoop:
    """What the published code does: autograd, and one dense Adam over the decoder and all rows' posteriors."""

    def __init__(self, x: Tensor, mask: Tensor, batch: int) -> None:
        self.x, self.mask, self.batch = x, mask, batch
        sizes = [LATENT, *[HIDDEN] * LAYERS]
        hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(sizes[-1], x.shape[1]))
        self.mean = torch.zeros(len(x), LATENT, requires_grad=True)
        self.log_var = torch.full((len(x), LATENT), -2.0, requires_grad=True)
        rows = {"params": [self.mean, self.log_var], "lr": 1e-2}
        groups: list[dict[str, Any]] = [{"params": self.net.parameters()}, rows]
        self.adam = torch.optim.Adam(groups, lr=1e-3)

    def run(self, steps: int) -> float:
        """Returns seconds per step."""
        start, done = time.process_time(), 0
        while done < steps:
            for rows in torch.randperm(len(self.x)).split(self.batch):
                mean, log_var = self.mean[rows], self.log_var[rows]
                z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
                error = ((self.net(z) - self.x[rows]) ** 2 * self.mask[rows]).sum()
                kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()
                loss = (error + 0.03 * kl) / self.mask[rows].sum()
                self.adam.zero_grad()
                loss.backward()
                self.adam.step()
                done += 1
                if done == steps:
                    break
        return (time.process_time() - start) / steps


def population_run(x: Tensor, mask: Tensor, batch: int, p: int, **how: str) -> Callable[[], float]:
    """Returns a function that trains an epoch and returns seconds per model-step."""
    config = TrialConfig.model_validate(
        {
            "name": "step",
            "data": {"source": "digits"},
            "model": {"latent": LATENT, "hidden": HIDDEN, "layers": LAYERS},
            "train": {"epochs": 10_000, "batch_size": batch, "kl_weight": 0.03, **how},
        }
    )
    population = Population([config] * p, MaskedRows(x.numpy(), mask.numpy() > 0))
    population.train_epoch()

    def run() -> float:
        start = time.process_time()
        population.train_epoch()
        return (time.process_time() - start) / math.ceil(len(x) / batch) / p

    return run


def floor(features: int, batch: int, multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Returns the seconds that the matrix products of a step take, P = 4."""
    sizes, seconds = [LATENT, *[HIDDEN] * LAYERS, features], 0.0
    for i, o in pairwise(sizes):
        x, w, g = torch.randn(4, batch, i), torch.randn(4, i, o), torch.randn(4, batch, o)
        for one, other in ((x, w), (x.mT, g), (g, w.mT)):
            times = []
            for _ in range(100):
                start = time.process_time()
                multiply(one, other)
                times.append(time.process_time() - start)
            seconds += median(times) / 4
    return seconds


def main() -> None:
    """Runs all settings and prints a table, then the worst ratio to what is to be reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--members", type=int, nargs="+", default=MEMBERS)
    args = parser.parse_args()
    how = {"precision": args.precision, "compile": args.compile}
    own_product = partial(product, bf16=args.precision == "bf16")
    use_threads(1)
    print("products by", "OpenBLAS" if by_openblas() and args.precision == "float32" else "PyTorch")
    print(
        "features batch   rows | plain ms |"
        + "".join(f"    P={p:<2} ms (x)  " for p in args.members)
        + "| floors, best/floors"
    )
    shares = []
    for features, batch, rows, best_goal, one_goal in SETTINGS:
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.random((rows, features), np.float32))
        mask = torch.from_numpy((rng.random((rows, features)) > 0.5).astype(np.float32))
        plain = PlainLoop(x, mask, batch)
        plain.run(3)
        members = [p for p in args.members if p * rows <= 200_000]
        runs = [population_run(x, mask, batch, p, **how) for p in members]
        plain_times: list[float] = []
        own_times: list[list[float]] = [[] for _ in runs]
        for _ in range(args.rounds):
            plain_times.append(plain.run(30 if rows < 10_000 else 8))
            for times, run in zip(own_times, runs, strict=True):
                times.append(run())
        reference, own = median(plain_times), [median(times) for times in own_times]
        floors = [floor(features, batch, torch.bmm), floor(features, batch, own_product)]
        ratios = [reference / value for value in own]
        cells = "".join(f" {value * 1e3:7.3f} ({ratio:5.1f}x)" for value, ratio in zip(own, ratios, strict=True))
        cells += " " * 17 * (len(args.members) - len(members))
        distance = ", ".join(f"{least * 1e3:.3f}" for least in floors)
        distance += ", " + ", ".join(f"{min(own) / least:.2f}" for least in floors)
        print(f"{features:8} {batch:5} {rows:6} | {reference * 1e3:8.3f} |{cells} | {distance}", flush=True)
        shares += [max(ratios) / best_goal] if best_goal else []
        shares += [ratios[0] / one_goal] if one_goal else []
    print(f"worst share of the speed-ups to reach: {min(shares):.2f}")


if __name__ == "__main__":
    main()
