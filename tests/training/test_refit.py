from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from tests.conftest import trial_config
from tests.training.test_population import trained
from vadtune.data import HoldoutConfig, IncompleteDataset, MaskedRows
from vadtune.training.inference import FittedModel
from vadtune.training.refit import ROW_FOLDS, CrossFitted, Fit, Trainer, same_steps

CONFIGS = [
    trial_config(),
    trial_config(train={"kl_weight": 0.3}),
    trial_config(model={"latent": 3, "layers": 0}),
    trial_config(model={"family": "vae"}),
]


def train_fits(fits: list[Fit], rows: MaskedRows) -> list[FittedModel | None]:
    with Trainer(rows) as trainer:
        return trainer.train(fits)


def cross_fit(fits: list[Fit], rows: MaskedRows) -> CrossFitted:
    with Trainer(rows) as trainer:
        return trainer.cross_fit(fits, len(rows.x), HoldoutConfig(), seed=0)


def test_the_same_rows_give_the_same_models(iris: IncompleteDataset) -> None:
    models = train_fits([Fit(config, 4) for config in CONFIGS], iris.train)
    for config, model in zip(CONFIGS, models, strict=True):
        (expected,) = trained(config, iris.train).models()
        assert model is not None
        assert model.config == config
        torch.testing.assert_close(model.weights, expected.weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.latents, expected.latents, rtol=1e-5, atol=1e-6)


def test_processes_give_what_one_process_gives(iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = [Fit(config, 4) for config in CONFIGS]
    here = train_fits(fits, iris.train)
    crossed_here = cross_fit(fits, iris.train)
    monkeypatch.setattr("vadtune.training.refit._IN_PROCESS_STEPS", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with Trainer(iris.train) as trainer:  # one after the other in the same processes
        crossed_there = trainer.cross_fit(fits, len(iris.train.x), HoldoutConfig(), seed=0)
        there = trainer.train(fits)
    assert not multiprocessing.active_children()
    for one, other in zip(here, there, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.latents, other.latents)
    for fit in crossed_here.sound:
        one, other = crossed_here.predictions(fit), crossed_there.predictions(fit)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("rows_before", "rows", "batch", "epochs", "total", "stop"),
    [
        (100, 100, 32, 40, 40, 40),
        (100, 200, 50, 40, 20, 20),  # 2 batches an epoch become 4
        (100, 200, 50, 10, 20, 5),  # stopped after a quarter
        (100, 120, 100, 40, 20, 20),
        (20, 40, 500, 40, 40, 40),  # one batch, however many rows
        (64, 6400, 1, 40, 1, 1),
    ],
)
def test_steps_stay_the_same(rows_before: int, rows: int, batch: int, epochs: int, total: int, stop: int) -> None:
    config = trial_config(train={"epochs": 40, "batch_size": batch})
    fit = same_steps(config, epochs, rows_before=rows_before, rows=rows)
    assert (fit.config.train.epochs, fit.epochs) == (total, stop)
    assert fit.config.model == config.model


def test_less_effort_shortens_the_schedule() -> None:
    fit = same_steps(trial_config(train={"epochs": 90}), 30, rows_before=100, rows=100, effort=1 / 3)
    assert (fit.config.train.epochs, fit.epochs) == (30, 10)


def test_every_observed_cell_is_predicted_without_itself_or_its_row(iris: IncompleteDataset) -> None:
    fits = [Fit(config, 4) for config in CONFIGS[:2]]
    crossed = cross_fit(fits, iris.train)
    assert len(crossed.truth) == iris.train.mask.sum()
    cells = np.sort(np.bincount(crossed.rows, minlength=len(iris.train.x)))
    np.testing.assert_array_equal(cells, np.sort(iris.train.mask.sum(1)))
    # Another value of one cell changes what others are predicted to be, and never its own prediction.
    row, column = np.argwhere(iris.train.mask)[7]
    x = iris.train.x.copy()
    x[row, column] += 3
    other = cross_fit(fits, MaskedRows(x, iris.train.mask))
    (own,) = np.flatnonzero(other.truth != crossed.truth)
    for fit in crossed.sound:
        one, two = crossed.predictions(fit), other.predictions(fit)
        assert one[own] == two[own]
        assert (one != two).sum() > len(one) / ROW_FOLDS


def test_what_diverges_is_left_out_alone(iris: IncompleteDataset) -> None:
    fits = [Fit(trial_config(train={"net_lr": lr, "epochs": 60, "optimiser": "sgd"}), 60) for lr in (1e-3, 1e25)]
    fine, diverged = train_fits(fits, iris.train)
    assert fine is not None
    assert diverged is None
    assert cross_fit(fits, iris.train).sound == [0]
