"""The search of digits.yaml as a plain Ray Tune script does it; run by search_throughput.py, in a process of its own.

Two ways, on the same data, space, model, budgets and scheduler as `vadtune search`:

    plain    a function trainable, a process per trial, a report and checkpoint-free validation every tenth of the
             epochs, Ray's stock MLflow callback on sqlite
    tuned    a class trainable with reused actors and Ray's JSON logger, no MLflow

The model is written as the published VAD code writes it: nn.Sequential, autograd, one dense Adam over the decoder and
all rows' posteriors.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import numpy as np
import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor, nn

from vadtune.config import SearchFile, load_search
from vadtune.core.metrics import score
from vadtune.core.processes import available_cores
from vadtune.data import MaskedRows, SearchData, load_dataset
from vadtune.search.algorithms.space import suggest
from vadtune.search.algorithms.trial_clock import decoder_weights

EPOCHS, BATCH, REPORTS = 250, 128, 10


def train(
    config: dict[str, Any], data: SearchData, search: SearchFile, reports: int = REPORTS
) -> Iterator[tuple[int, Callable[[MaskedRows], np.ndarray]]]:
    """Trains as the published code does; every so often yields the epoch and how to reconstruct new rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    c = search.trial_config(config)
    mask = torch.tensor(data.train.mask)
    x = torch.tensor(data.train.x).masked_fill(~mask, 0.0)
    observed = mask.float()
    widths = [c.model.latent, *[c.model.hidden] * c.model.layers]
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[c.model.activation]
    hidden = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), act())]
    net = nn.Sequential(*hidden, nn.Linear(widths[-1], x.shape[1]))
    learned = c.model.posterior == "learned"
    mean = (0.1 * torch.randn(len(x), c.model.latent)).requires_grad_()
    log_var = torch.full_like(mean, -2.0 if learned else c.model.log_var).requires_grad_(learned)
    groups: list[dict[str, Any]] = [
        {"params": list(net.parameters()), "lr": c.train.net_lr, "weight_decay": c.train.weight_decay},
        {"params": [mean, *([log_var] if learned else [])], "lr": c.train.latent_lr, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)

    def loss_of(rows_x: Tensor, rows_mask: Tensor, m: Tensor, v: Tensor) -> Tensor:
        z = m + torch.exp(0.5 * v) * torch.randn_like(m)
        error = ((net(z) - rows_x) ** 2 * rows_mask).sum()
        kl = -0.5 * (1 + v - m**2 - v.exp()).sum()
        loss: Tensor = (error + c.train.kl_weight * kl) / rows_mask.sum()
        return loss

    def reconstruct(part: MaskedRows) -> np.ndarray:
        """Fits the posteriors of new rows and decodes their means."""
        mask = torch.tensor(part.mask)
        x = torch.tensor(part.x).masked_fill(~mask, 0.0)
        observed = mask.float()
        with torch.no_grad():
            decoded = net(mean)
            start = mean[(observed @ decoded.square().T - 2 * x @ decoded.T).argmin(1)]
        m = start.clone().requires_grad_()
        v = torch.full_like(m, -2.0 if learned else c.model.log_var).requires_grad_(learned)
        adam = torch.optim.Adam([m, *([v] if learned else [])], lr=c.infer.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, c.infer.steps))
        for _ in range(c.infer.steps):
            loss = loss_of(x, observed, m, v) * observed.sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
        with torch.no_grad():
            return np.asarray(net(m).numpy())

    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = loss_of(x[rows], observed[rows], mean[rows], log_var[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
        schedule.step()
        if epoch % (EPOCHS // reports) == 0:
            yield epoch, reconstruct


def scores(config: dict[str, Any], data: SearchData, search: SearchFile) -> Iterator[tuple[int, float]]:
    """Trains; yields epoch and error over the held-out validation cells every tenth of the epochs."""
    visible, truth, cells = data.validation
    for epoch, reconstruct in train(config, data, search):
        yield epoch, score(reconstruct(visible), truth, cells).rmse


def function_trial(config: dict[str, Any], data: SearchData, search: SearchFile) -> None:
    """A function trainable."""
    for epoch, error in scores(config, data, search):
        tune.report({"epoch": epoch, "val_missing_rmse": error})


class ClassTrial(tune.Trainable):  # type: ignore[misc]
    """A class trainable whose process is reused."""

    def setup(self, config: dict[str, Any], data: SearchData, search: SearchFile) -> None:
        """Starts a configuration."""
        self._data, self._search = data, search
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another one."""
        self._steps = scores(new_config, self._data, self._search)
        return True

    def step(self) -> dict[str, Any]:
        """Goes to the next report."""
        epoch, error = next(self._steps)
        return {"epoch": epoch, "val_missing_rmse": error, "done": epoch >= EPOCHS}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing: this baseline keeps no checkpoints."""

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing: this baseline keeps no checkpoints."""


def main() -> None:
    """Runs one of the two and prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["plain", "tuned"])
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    start = time.perf_counter()
    search = load_search(args.file)
    data = load_dataset(search.data).search_data
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.kind == "tuned":
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    ray.init(num_cpus=available_cores(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    trainable: Any
    if args.kind == "plain":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        uri = f"sqlite:///{args.folder.absolute() / 'plain.db'}"
        callbacks: list[Any] = [MLflowLoggerCallback(tracking_uri=uri, experiment_name="plain")]
        trainable = tune.with_parameters(function_trial, data=data, search=search)
    else:
        from ray.tune.logger import JsonLoggerCallback

        callbacks = [JsonLoggerCallback()]
        trainable = tune.with_parameters(ClassTrial, data=data, search=search)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        tune_config=tune.TuneConfig(
            num_samples=args.samples,
            metric="val_missing_rmse",
            mode="min",
            search_alg=OptunaSearch(
                space=partial(suggest, search),
                metric="val_missing_rmse",
                mode="min",
                sampler=optuna.samplers.TPESampler(seed=search.search.seed),
            ),
            scheduler=ASHAScheduler(time_attr="epoch", max_t=EPOCHS, grace_period=28, reduction_factor=3),
            reuse_actors=args.kind == "tuned",
        ),
        run_config=tune.RunConfig(
            name=args.kind, storage_path=str(args.folder.absolute()), callbacks=callbacks, verbose=0
        ),
    )
    results = tuner.fit()
    epochs = sum(int(result.metrics.get("epoch", 0)) for result in results if result.metrics)
    best = min(result.metrics["val_missing_rmse"] for result in results if result.metrics)
    columns = data.train.x.shape[1]
    work = sum(
        int(result.metrics.get("epoch", 0)) * decoder_weights(search.trial_config(result.config or {}).model, columns)
        for result in results
        if result.metrics
    )
    found = {"epochs": epochs, "best": best, "work": work, "seconds_inside": time.perf_counter() - start}
    print(json.dumps(found))
    ray.shutdown()


if __name__ == "__main__":
    main()
