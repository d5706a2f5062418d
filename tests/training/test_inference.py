from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import trial_config
from tests.training.test_population import KINDS, trained
from vadtune.config import STARTS
from vadtune.core.metrics import score
from vadtune.data import IncompleteDataset, MaskedRows
from vadtune.training import inference
from vadtune.training.inference import FittedModel, reconstruct


def fitted(rows: MaskedRows, **sections: dict[str, object]) -> FittedModel:
    return trained(trial_config(**sections), rows).models()[0]


@pytest.mark.parametrize("model", KINDS)
def test_observed_cells_survive_imputation_bit_for_bit(model: dict[str, Any], iris: IncompleteDataset) -> None:
    part = iris.test_part(0.5, 1)
    x_imputed = fitted(iris.train, model=model).impute(part)
    assert x_imputed.dtype == np.float32
    np.testing.assert_array_equal(x_imputed[part.mask].view(np.uint32), part.x[part.mask].view(np.uint32))
    assert np.isfinite(x_imputed).all()


@pytest.mark.parametrize("model", KINDS)
def test_inference_leaves_the_model_as_it_was(model: dict[str, Any], iris: IncompleteDataset) -> None:
    fit = fitted(iris.train, model=model)
    weights, latents = fit.weights.clone(), fit.latents.clone()
    fit.reconstruct(iris.test_part(0.5, 1))
    assert torch.equal(fit.weights, weights)
    assert torch.equal(fit.latents, latents)


@pytest.mark.parametrize("model", KINDS)
def test_a_row_does_not_depend_on_its_neighbours(
    model: dict[str, Any], iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, part = fitted(iris.train, model=model), iris.test_part(0.5, 1)
    together = fit.reconstruct(part)
    alone = np.concatenate(
        [fit.reconstruct(MaskedRows(part.x[i : i + 1], part.mask[i : i + 1])) for i in range(len(part.x))]
    )
    np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(inference, "_CHUNK_FLOATS", 1000)
    np.testing.assert_allclose(fit.reconstruct(part), together, rtol=1e-3, atol=1e-4)


def test_several_models_at_once_equal_each_alone(iris: IncompleteDataset) -> None:
    models = [fitted(iris.train, train={"kl_weight": w}, infer={"lr": lr}) for w, lr in ((0.0, 0.1), (0.5, 0.2))]
    part = iris.test_part(0.5, 1)
    for model, x_hat in zip(models, reconstruct(models, part), strict=True):
        np.testing.assert_allclose(x_hat, model.reconstruct(part), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [*[{"start": start} for start in STARTS[2:]], {"prior": "train"}, {"kl_weight": 0.01}]
)
def test_every_option_has_an_effect(options: dict[str, object], iris: IncompleteDataset) -> None:
    part = iris.test_part(0.5, 1)
    assert not np.allclose(fitted(iris.train).reconstruct(part), fitted(iris.train, infer=options).reconstruct(part))


def test_the_train_start_is_the_mean_of_the_train_rows(iris: IncompleteDataset) -> None:
    population = trained(trial_config(infer={"start": "train", "steps": 0}), iris.train)
    (model,) = population.models()
    mean = model.latents[:, :2].mean(0)[None, None]
    decoded = population.family.decode(population.family.layers(model.weights[None]), mean)[0, 0].numpy()
    x_hat = model.reconstruct(MaskedRows.hide(iris.test_truth, np.ones_like(iris.test_truth, dtype=bool)))
    np.testing.assert_allclose(x_hat, np.tile(decoded, (len(x_hat), 1)), rtol=1e-5, atol=1e-6)


def test_dropout_is_no_part_of_inference(iris: IncompleteDataset) -> None:
    model = fitted(iris.train, model={"dropout": 0.5})
    other = dataclasses.replace(model, config=trial_config())
    part = iris.test_part(0.5, 1)
    np.testing.assert_array_equal(model.reconstruct(part), other.reconstruct(part))


def test_fitting_brings_observed_cells_closer(iris: IncompleteDataset) -> None:
    part = iris.test_part(0.3, 0)
    sections = {"train": {"epochs": 60, "kl_weight": 0.01}}

    def observed_rmse(steps: int) -> float:
        population = trained(trial_config(**sections, infer={"steps": steps}), iris.train, epochs=60)
        return score(population.models()[0].reconstruct(part), iris.test_truth, part.mask).rmse

    assert observed_rmse(60) < observed_rmse(0)


def test_the_nearest_start_is_the_nearest_reconstruction_over_observed_cells(iris: IncompleteDataset) -> None:
    population = trained(trial_config(infer={"steps": 0}), iris.train)
    (model,) = population.models()
    decoded = population.family.decode(population.family.layers(model.weights[None]), model.latents[None, :, :2])[
        0
    ].numpy()
    part = iris.test_part(0.5, 1)
    distance = np.nansum((part.x[:, None] - decoded[None]) ** 2, axis=-1)
    said = part.mask.any(1)
    nearest = decoded[distance.argmin(1)]
    np.testing.assert_allclose(model.reconstruct(part)[said], nearest[said], rtol=1e-5, atol=1e-6)


def test_a_table_of_many_rows_starts_linearly(iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model, part = fitted(iris.train), iris.test_part(0.5, 1)
    near, linear = (fitted(iris.train, infer={"start": start}) for start in ("nearest", "linear"))
    np.testing.assert_array_equal(model.reconstruct(part), near.reconstruct(part))
    monkeypatch.setattr(inference, "_STARTS", len(iris.train.x) - 1)
    np.testing.assert_allclose(model.reconstruct(part), linear.reconstruct(part), rtol=0.1, atol=0.05)
    assert not np.allclose(model.reconstruct(part), near.reconstruct(part))


def test_the_linear_start_of_a_linear_decoder_is_its_posterior(iris: IncompleteDataset) -> None:
    options, training = {"layers": 0, "latent": 2}, {"kl_weight": 0.1, "epochs": 100}
    exact = trained(trial_config(model=options, train=training), iris.train, epochs=100).models()[0]
    assert exact.config.model.closed_form
    config = trial_config(
        model={**options, "posterior": "none"}, train=training, infer={"start": "linear", "steps": 0, "prior": "train"}
    )
    assert not config.model.closed_form
    part = iris.test_part(0.3, 1)
    start, expected = (
        dataclasses.replace(exact, config=one)
        for one in (config, trial_config(model=options, train=training, infer={"prior": "train"}))
    )
    np.testing.assert_allclose(start.reconstruct(part), expected.reconstruct(part), atol=0.01)


@pytest.mark.parametrize("start", ["nearest", "linear"])
def test_a_diverged_model_leaves_the_others_alone(start: str, iris: IncompleteDataset) -> None:
    model, part = fitted(iris.train, infer={"start": start}), iris.test_part(0.5, 1)
    bad = dataclasses.replace(model, weights=model.weights * np.nan, latents=model.latents * np.nan)
    sound, diverged = reconstruct([model, bad], part)
    np.testing.assert_allclose(sound, model.reconstruct(part), rtol=1e-5, atol=1e-6)
    assert np.isnan(diverged).any()


@pytest.mark.parametrize("prior", ["standard", "train"])
@pytest.mark.parametrize("model", KINDS)
def test_a_row_without_any_observed_cell_is_imputed_from_the_prior_mean(
    prior: str, model: dict[str, Any], iris: IncompleteDataset
) -> None:
    mask = iris.test_mask(0.3, 0)
    mask[2:5] = False
    population = trained(trial_config(model=model, infer={"prior": prior}), iris.train)
    (fit,) = population.models()
    k = fit.config.model.latent
    mean = fit.latents[:, :k].mean(0) if prior == "train" else torch.zeros(k)
    decoded = population.family.decode(population.family.layers(fit.weights[None]), mean[None, None])[0, 0].numpy()
    x_imputed = fit.impute(MaskedRows.hide(iris.test_truth, mask))
    np.testing.assert_allclose(x_imputed[2:5], np.tile(decoded, (3, 1)), rtol=1e-4, atol=1e-5)


def test_a_searched_vad_beats_the_column_means(iris: IncompleteDataset) -> None:
    sections = {
        "model": {"layers": 0},
        "train": {"epochs": 200, "kl_weight": 0.3, "net_lr": 1e-2},
        "infer": {"steps": 60},
    }
    population = trained(trial_config(**sections), iris.train, epochs=200)
    part = iris.test_part(0.3, 0)
    vad = score(population.models()[0].reconstruct(part), iris.test_truth, ~part.mask).rmse
    mean = score(np.zeros_like(part.x), iris.test_truth, ~part.mask).rmse
    assert vad < 0.8 * mean
