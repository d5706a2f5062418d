"""Inferring the test rows at nine missing ratios: one call of vadtune against the published VAD code's loop.

    python benchmarks/inference.py

One model (decoder 50-100-100-64, digits at ratio .5) serves both. The plain loop does what the published code does: for
each ratio on its own, posteriors start at 0 and take 500 epochs of Adam at lr 1e-3 in batches of 256. Ours takes all
ratios and rows in one call: nearest-train-latent start, 30 Adam steps with cosine decay. Both are timed in turn, and
compared on the masked mean squared error (over the observed cells that were given) and on the RMSE over missing cells.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

from vadtune.config import TrialConfig
from vadtune.core.metrics import score
from vadtune.data import MaskedRows, load_dataset
from vadtune.models import Architecture, build_family
from vadtune.training.inference import FittedModel, reconstruct
from vadtune.training.population import Population

RATIOS = [round(0.1 * tenth, 1) for tenth in range(1, 10)]


def trained() -> tuple[FittedModel, list[MaskedRows], np.ndarray]:
    """Returns a model, the test rows under each ratio, and their truth."""
    config = TrialConfig.model_validate(
        {
            "name": "inference",
            "data": {"source": "digits", "missing": {"ratio": 0.5}},
            "model": {"latent": 50, "hidden": 100, "layers": 2},
            "train": {"epochs": 250, "kl_weight": 0.04, "net_lr": 3e-3},
            "infer": {"steps": 30, "lr": 0.15},
        }
    )
    dataset = load_dataset(config.data)
    population = Population([config], dataset.train)
    population.train_until(config.train.epochs)
    (model,) = population.models()
    return model, [dataset.test_part(ratio, 0) for ratio in RATIOS], dataset.test_truth


def plain(model: FittedModel, parts: list[MaskedRows]) -> list[np.ndarray]:
    """Returns reconstructions by the published code's loop, with the decoder of ``model``."""
    family = build_family(Architecture.of(model.config.model, parts[0].x.shape[1]))
    layers = [(layer.weight[0], layer.bias[0]) for layer in family.layers(model.weights[None])["decoder"]]

    def decode(z: torch.Tensor) -> torch.Tensor:
        for index, (weight, bias) in enumerate(layers):
            z = z @ weight + bias
            z = z if index == len(layers) - 1 else torch.relu(z)
        return z

    found = []
    for part in parts:
        mask = torch.tensor(part.mask)
        x, observed = torch.tensor(part.x).masked_fill(~mask, 0.0), mask.float()
        mean = torch.zeros(len(x), model.config.model.latent, requires_grad=True)
        log_var = torch.full_like(mean, -2.0).requires_grad_()
        adam = torch.optim.Adam([mean, log_var], lr=1e-3)
        for _ in range(500):
            for rows in torch.split(torch.randperm(len(x)), 256):
                z = mean[rows] + torch.exp(0.5 * log_var[rows]) * torch.randn_like(mean[rows])
                error = ((decode(z) - x[rows]) ** 2 * observed[rows]).sum()
                kl = -0.5 * (1 + log_var[rows] - mean[rows] ** 2 - log_var[rows].exp()).sum()
                loss = (error + model.config.train.kl_weight * kl) / observed[rows].sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
        with torch.no_grad():
            found.append(decode(mean).numpy())
    return found


def ours(model: FittedModel, parts: list[MaskedRows]) -> list[np.ndarray]:
    """Returns reconstructions of all ratios and rows by one call of vadtune."""
    stacked = MaskedRows(np.concatenate([part.x for part in parts]), np.concatenate([part.mask for part in parts]))
    return np.split(reconstruct([model], stacked)[0], len(parts))


def main() -> None:
    """Times both in turn and prints a table, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, parts, truth = trained()
    times: dict[str, list[float]] = {"plain": [], "vadtune": []}
    found = {}
    for _ in range(rounds):
        for name, infer in (("plain", plain), ("vadtune", ours)):
            start = time.perf_counter()
            found[name] = infer(model, parts)
            times[name].append(time.perf_counter() - start)
    print("ratio   masked MSE plain, vadtune   RMSE missing plain, vadtune")
    for ratio, part, *x_hats in zip(RATIOS, parts, found["plain"], found["vadtune"], strict=True):
        observed = [score(x_hat, truth, part.mask).rmse ** 2 for x_hat in x_hats]
        missing = [score(x_hat, truth, ~part.mask).rmse for x_hat in x_hats]
        worse = "" if observed[1] <= observed[0] and missing[1] <= missing[0] else "   worse here"
        print(f"{ratio:5} {observed[0]:16.5f} {observed[1]:10.5f} {missing[0]:16.3f} {missing[1]:10.3f}{worse}")
    for name, seconds in times.items():
        print(f"{name}: {median(seconds):.2f} s")
    print(f"ratio: {median(times['plain']) / median(times['vadtune']):.1f}")


if __name__ == "__main__":
    main()
