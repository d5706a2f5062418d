"""Linear decoders in closed form: against dense formulas, scikit-learn, and their own objective."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from torch import Tensor
from torch.distributions import MultivariateNormal

from tests.conftest import trial_config
from vadtune import native
from vadtune.config import NOISES, TrialConfig
from vadtune.data import IncompleteDataset, MaskedRows
from vadtune.models import linear_em
from vadtune.models.linear_em import LinearDecoder, em_step, posterior_means, regression
from vadtune.native.linear_kernels import LANES
from vadtune.training.inference import infer, reconstruct
from vadtune.training.population import Population

N, D, K = 60, 6, 3
KL_WEIGHT = 0.4
MODELS = [pytest.param({"layers": 0, "noise": noise}, id=noise) for noise in NOISES]


@pytest.fixture(params=["kernel", "operations"], autouse=True)
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code and PyTorch's operations meet the same tests."""
    if request.param == "operations":
        monkeypatch.setattr(native, "is_available", lambda: False)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decoder(noise: str = "learned") -> LinearDecoder:
    log_var = randn(D, seed=3)
    obs_log_var = log_var - log_var.mean() if noise == "learned" else None
    return LinearDecoder(randn(K, D, seed=1), randn(D, seed=2), obs_log_var)


def data(missing: float = 0.4) -> tuple[Tensor, Tensor]:
    """Returns rows of three factors with holes (n, d), and their mask."""
    mask = (torch.rand(N, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64) > missing).double()
    x = randn(N, K, seed=4) @ randn(K, D, seed=5) + 0.3 * randn(N, D, seed=6)
    return x * mask, mask


def log_likelihood(one: LinearDecoder, x: Tensor, mask: Tensor) -> float:
    """Returns the marginal log likelihood of the observed cells, each row's by its dense covariance."""
    total = 0.0
    for row, seen in zip(x, mask > 0, strict=True):
        w = one.weight[:, seen]
        covariance = w.mT @ w + torch.diag(1 / one.precision(KL_WEIGHT)[seen])
        if seen.any():
            total += float(MultivariateNormal(one.bias[seen], covariance).log_prob(row[seen]))
    return total


@pytest.mark.parametrize(
    ("noise", "k", "n"),
    [("learned", 1, 1), ("fixed", 2, LANES), ("learned", 5, 2 * LANES + 3), ("fixed", 8, LANES - 1)],
)
def test_machine_code_finds_what_operations_find(noise: str, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = (randn(n, D, seed=7) > 0).double()
    x = randn(n, D, seed=8) * mask
    one = LinearDecoder(randn(k, D, seed=1), randn(D, seed=2), decoder(noise).obs_log_var)
    prior = {"prior_mean": randn(k, seed=9), "prior_precision": randn(k, seed=10).exp()}
    standard = one, x, mask, KL_WEIGHT, torch.zeros(k).double(), torch.ones(k).double()
    found = posterior_means(one, x, mask, KL_WEIGHT, **prior), *linear_em._posteriors(*standard, learn=True)
    monkeypatch.setattr(native, "is_available", lambda: False)
    expected = posterior_means(one, x, mask, KL_WEIGHT, **prior), *linear_em._posteriors(*standard, learn=True)
    for a, b in zip((*found[:2], *found[2]), (*expected[:2], *expected[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("chunk", [50, 10**6])
def test_posterior_means_are_those_of_the_joint_gaussian(
    noise: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents and observed cells are jointly Gaussian: the mean of the one given the other, by their covariances."""
    monkeypatch.setattr(linear_em, "_CHUNK_FLOATS", chunk)
    one, (x, mask) = decoder(noise), data()
    prior_mean, prior_precision = randn(K, seed=8), randn(K, seed=9).abs() + 0.5
    means = posterior_means(one, x, mask, KL_WEIGHT, prior_mean=prior_mean, prior_precision=prior_precision)
    prior = torch.diag(1 / prior_precision)
    for row, seen, mean in zip(x, mask > 0, means, strict=True):
        w = one.weight[:, seen]
        covariance = w.mT @ prior @ w + torch.diag(1 / one.precision(KL_WEIGHT)[seen])
        gap = row[seen] - one.bias[seen] - prior_mean @ w
        torch.testing.assert_close(mean, prior_mean + prior @ w @ torch.linalg.solve(covariance, gap))


@pytest.mark.parametrize("noise", NOISES)
def test_the_loss_is_the_marginal_likelihood(noise: str) -> None:
    """Loss · cells = −kl_weight · log p(observed cells), up to the constants that objective.py leaves out."""
    one, (x, mask) = decoder(noise), data()
    done = em_step(one, x, mask, KL_WEIGHT, 0.0)
    constant = 0.5 * KL_WEIGHT * math.log(math.pi * KL_WEIGHT) * float(mask.sum())
    expected = -KL_WEIGHT * log_likelihood(one, x, mask) - constant
    assert done.weighted_error + KL_WEIGHT * done.kl == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("ridge", [0.0, 5.0])
def test_no_iteration_raises_what_is_minimised(noise: str, ridge: float) -> None:
    """The loss with the penalties on weights and noise."""
    x, mask = data()
    one, losses = decoder(noise), []
    for _ in range(40):
        done = em_step(one, x, mask, KL_WEIGHT, ridge)
        penalty = ridge * float(one.weight.square().sum())
        if one.obs_log_var is not None:
            penalty += ridge * 0.5 * KL_WEIGHT * float((torch.exp(-one.obs_log_var) + one.obs_log_var).sum())
        losses.append(done.weighted_error + KL_WEIGHT * done.kl + penalty)
        one = done.decoder
    assert all(after <= before + 1e-6 for before, after in pairwise(losses))
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("noise", NOISES)
def test_complete_data_gives_what_scikit_learn_finds(noise: str) -> None:
    """Factor analysis where the noise is learned, probabilistic PCA's closed form (Tipping & Bishop 1999, eq. 15) where
    it is fixed: the same covariance of the data."""
    n, k = 500, 2  # of two factors, six columns leave one answer
    x = randn(n, k, seed=4) @ randn(k, D, seed=5) + randn(n, D, seed=6) * torch.linspace(0.3, 0.8, D)
    if noise == "learned":
        theirs = FactorAnalysis(k, tol=1e-8, max_iter=3000, svd_method="lapack").fit(x.numpy())
        variance = float(np.exp(np.log(theirs.noise_variance_).mean()))  # the amount of noise is kl_weight's
        covariance = torch.tensor(theirs.get_covariance())
    else:
        variance = 0.3
        values, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
        stretch = (values[-k:] - variance).clamp(min=0)
        covariance = vectors[:, -k:] * stretch @ vectors[:, -k:].mT + variance * torch.eye(D)
    one = decoder(noise)._replace(weight=randn(k, D, seed=1))
    for _ in range(150):
        one = em_step(one, x, torch.ones_like(x), 2 * variance, 0.0).decoder
    ours = one.weight.mT @ one.weight + torch.diag(1 / one.precision(2 * variance))
    torch.testing.assert_close(ours, covariance.double(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.bias, x.mean(0), rtol=1e-3, atol=1e-3)


def test_holes_are_no_zeros() -> None:
    """What lies under the mask changes nothing."""
    x, mask = data()
    dirty = em_step(decoder(), torch.where(mask > 0, x, torch.tensor(7.0)), mask, KL_WEIGHT, 1.0)
    clean = em_step(decoder(), x, mask, KL_WEIGHT, 1.0)
    torch.testing.assert_close(dirty.decoder.weight, clean.decoder.weight)
    torch.testing.assert_close(dirty.means, clean.means)


def test_a_regression_recovers_a_linear_map() -> None:
    z, weight, bias = randn(500, K, seed=1), randn(K, D, seed=2), randn(D, seed=3)
    mask = (randn(500, D, seed=4) > 0).double()
    found_weight, found_bias = regression(z, (z @ weight + bias) * mask, mask)
    torch.testing.assert_close(found_weight, weight, rtol=0, atol=0.05)
    torch.testing.assert_close(found_bias, bias, rtol=0, atol=0.05)


def fitted(config: TrialConfig, train: MaskedRows) -> Population:
    population = Population([config], train)
    population.train_until(config.train.epochs)
    return population


@pytest.mark.parametrize(("latent", "kl_weight", "start"), [(2, 0.1, "pca"), (9, 0.1, "zeros"), (2, 0.0, "zeros")])
@pytest.mark.parametrize("model", MODELS)
def test_em_converges_and_then_costs_nothing(
    model: dict[str, object], start: str, latent: int, kl_weight: float, iris: IncompleteDataset
) -> None:
    """More latents than columns, no noise, a start that says nothing: it converges all the same."""
    train = {"epochs": 400, "kl_weight": kl_weight, "latent_init": start, "weight_decay": 1e-2}
    config = trial_config(model={**model, "latent": latent}, train=train)
    population = fitted(config, iris.train)
    before = population.states()[0]["weights"].clone()
    assert not torch.equal(before, Population([config], iris.train).states()[0]["weights"])
    population.train_epoch()
    torch.testing.assert_close(population.states()[0]["weights"], before, rtol=0, atol=0)
    assert population.members[0].epoch == 401
    assert all(math.isfinite(value) for value in population.members[0].metrics.values())


@pytest.mark.parametrize("model", MODELS)
def test_a_converged_model_has_next_to_nothing_to_gain(
    model: dict[str, object], iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a hundredth of a nat for an observed cell, in the hundreds of iterations it does without."""
    config = trial_config(model={**model, "latent": 3}, train={"epochs": 400, "kl_weight": 0.02, "weight_decay": 0.0})
    converged = fitted(config, iris.train).members[0].metrics["train_loss"]
    monkeypatch.setattr("vadtune.training.stack._CONVERGED", 0.0)
    monkeypatch.setattr("vadtune.training.stack._CONVERGED_LOSS", 0.0)
    assert 0 <= converged - fitted(config, iris.train).members[0].metrics["train_loss"] < 0.01 * 0.02


@pytest.mark.parametrize("model", MODELS)
def test_neither_gradients_nor_batches_nor_steps_exist(model: dict[str, object], iris: IncompleteDataset) -> None:
    part = iris.test_part(0.5, 1)
    one = trial_config(model=model, train={"epochs": 8})
    other = trial_config(
        model=model,
        train={"epochs": 8, "net_lr": 0.3, "latent_lr": 0.7, "batch_size": 9, "schedule": "plateau"},
        infer={"steps": 3, "lr": 0.9, "start": "zeros"},
    )
    assert one.to_dict() == other.to_dict()
    models = [fitted(config, iris.train).models()[0] for config in (one, other)]
    np.testing.assert_array_equal(models[0].reconstruct(part), models[1].reconstruct(part))
    np.testing.assert_array_equal(*infer([models[0], models[0]], part, effort=0.3).x_hat)


def test_closed_form_is_no_worse_than_one_of_gradients(iris: IncompleteDataset) -> None:
    """A fixed posterior of the same linear decoder is trained step by step, to a loss that is no lower."""
    train = {"epochs": 300, "kl_weight": 0.3, "net_lr": 1e-2, "weight_decay": 0.0}
    free, fixed = (
        fitted(trial_config(model={"layers": 0, "posterior": kind, "log_var": -1.5}, train=train), iris.train)
        for kind in ("learned", "fixed")
    )
    assert free.members[0].metrics["train_loss"] < fixed.members[0].metrics["train_loss"]


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("noise", NOISES)
def test_a_column_that_no_row_observes_is_its_mean_and_harms_no_other(noise: str, ridge: float) -> None:
    x, mask = data()
    model = {"layers": 0, "latent": 2, "noise": noise}
    train = {"kl_weight": KL_WEIGHT, "weight_decay": ridge, "epochs": 12}
    found = []
    for seen in (mask[:, :-1], torch.cat([mask[:, :-1], torch.zeros(N, 1)], dim=1)):
        part = MaskedRows.hide(x[:, : seen.shape[1]].numpy(), seen.numpy() > 0)
        population = Population([trial_config(model=model, train=train)], part)
        population.train_until(12)
        found.append(reconstruct(population.models(), part)[0])
    without, beside = found
    np.testing.assert_array_equal(beside[:, -1], 0)
    if noise == "fixed" and not ridge:
        np.testing.assert_allclose(beside[:, :-1], without, atol=0.02)
    assert np.isfinite(beside).all()


def test_a_singular_member_diverges_alone() -> None:
    z = np.random.default_rng(0).normal(size=(40, 1))
    part = MaskedRows.hide(np.repeat(1e12 * z, 6, axis=1), np.random.default_rng(1).random((40, 6)) < 0.7)
    weights = 0.0, 1e26
    configs = [trial_config(model={"layers": 0, "latent": 4}, train={"kl_weight": weight}) for weight in weights]
    population = Population(configs, part)
    population.train_epoch()
    assert [member.divergence() is None for member in population.members] == [False, True]
    assert [np.isfinite(x_hat).all() for x_hat in reconstruct(population.models(), part)] == [False, True]
