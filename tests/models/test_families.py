"""Networks and objective against automatic differentiation and torch.distributions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vadtune import native
from vadtune.config import sections as config_module
from vadtune.core.errors import ConfigError
from vadtune.models import MODELS, Architecture, build_family
from vadtune.models.heads import HEADS
from vadtune.models.networks import ACTIVATIONS, MLP
from vadtune.models.objective import Posterior, Prior, noise_gradient, posterior_gradients, reconstruction, sample
from vadtune.models.objective import kl_divergence as our_kl
from vadtune.models.observation_noise import log_variance_backward
from vadtune.models.vad import LATENT_INITS
from vadtune.training.optimiser import OPTIMISERS, ROW_OPTIMISERS, SCHEDULES, SGD, Adam, AdamW, Plateau

P, B, D, K = 3, 5, 7, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_names_a_file_may_use_are_those_of_the_registries() -> None:
    assert set(config_module.FAMILIES) == set(MODELS)
    assert set(config_module.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(config_module.HEADS) == set(HEADS)
    assert set(config_module.OPTIMISERS) == set(OPTIMISERS) == set(ROW_OPTIMISERS)
    assert set(config_module.SCHEDULES) == set(SCHEDULES)
    assert set(config_module.LATENT_INITS) == set(LATENT_INITS)
    for noise in config_module.NOISES:
        family = build_family(Architecture("vad", D, K, 6, 1, "tanh", "learned", noise=noise))
        assert ("noise" in family.networks) == (noise == "learned")


FUNCTIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


# Every activation with and without all that may follow or precede it; each of these alone; every depth.
PERCEPTRONS = [
    *[(activation, (4, 6, 6, 7), dressed, dressed, dressed) for activation in ACTIVATIONS for dressed in (False, True)],
    *[("tanh", (4, 6, 7), norm, skip, dropout) for norm, skip, dropout in ((1, 0, 0), (0, 1, 0), (0, 0, 1))],
    *[("relu", (4, 7), False, skip, False) for skip in (False, True)],
]


@pytest.mark.parametrize(("activation", "sizes", "layer_norm", "skip", "dropout"), PERCEPTRONS)
def test_gradients_of_a_perceptron_are_those_of_autograd(
    activation: str, sizes: tuple[int, ...], layer_norm: bool, skip: bool, dropout: bool
) -> None:
    mlp = MLP(sizes, ACTIVATIONS[activation], bool(layer_norm), bool(skip))
    flat = randn(P, mlp.n_parameters, seed=1).requires_grad_()
    x = randn(P, B, sizes[0], seed=2).requires_grad_()
    upstream = randn(P, B, sizes[-1], seed=3)
    factors = [2.0 * (randn(P, B, o, seed=9 + i) > 0) for i, o in enumerate(sizes[1:-1])] if dropout else None

    h = x
    for i, (weight, bias, scale, shift, beside) in enumerate(mlp.layers(flat)):
        h = h @ weight + bias
        if i < len(sizes) - 2:
            h = nn.functional.layer_norm(h, h.shape[-1:]) * scale + shift if layer_norm else h
            h = FUNCTIONS[activation](h)
            h = h * factors[i] if factors else h
        h = h if beside is None else h + x @ beside
    want_flat, want_x = torch.autograd.grad((h * upstream).sum(), [flat, x])

    with torch.no_grad():
        grad = torch.full_like(flat, torch.nan)  # every entry must be written
        layers = mlp.layers(flat)
        output, tape = mlp.forward(layers, x, factors)
        torch.testing.assert_close(output, h.detach())
        grad_x = mlp.backward(layers, tape, upstream, mlp.layers(grad))
        frozen = torch.full((P, B, 2 * sizes[0]), torch.nan, dtype=x.dtype)[..., : sizes[0]]
        tape = mlp.forward(layers, x, factors)[1]
        mlp.backward(layers, tape, upstream, None, grad_input=frozen)
    torch.testing.assert_close(grad, want_flat)
    torch.testing.assert_close(grad_x, want_x)
    torch.testing.assert_close(frozen, want_x)


def test_a_skip_starts_as_nothing_and_has_a_name_of_its_own() -> None:
    plain, skipping = MLP((4, 6, 7), ACTIVATIONS["tanh"]), MLP((4, 6, 7), ACTIVATIONS["tanh"], skip=True)
    flat = [mlp.initial(torch.Generator().manual_seed(0))[None] for mlp in (plain, skipping)]
    x = randn(1, B, 4).float()
    torch.testing.assert_close(
        skipping.forward(skipping.layers(flat[1]), x)[0], plain.forward(plain.layers(flat[0]), x)[0]
    )
    assert list(skipping.layers(flat[1])[-1].tensors()) == ["weight", "bias", "skip"]


def test_a_projection_is_the_picture_of_its_points_and_its_gradients_are_those_of_autograd() -> None:
    points = 3
    mlp = HEADS["projection"](MLP((4, 6, 2 * points), ACTIVATIONS["tanh"]))
    assert mlp.sizes[-1] == 3 * points + 12
    flat = randn(P, mlp.n_parameters, seed=1).requires_grad_()
    x, upstream = randn(P, B, 4, seed=2).requires_grad_(), randn(P, B, 2 * points, seed=3)
    first, last = mlp.layers(flat)
    scene = torch.tanh(x @ first.weight + first.bias) @ last.weight + last.bias
    homogeneous = torch.cat([scene[..., :-12].view(P, B, points, 3), torch.ones(P, B, points, 1)], dim=-1)
    picture = (homogeneous @ scene[..., -12:].view(P, B, 4, 3))[..., :2].reshape(P, B, 2 * points)
    want_flat, want_x = torch.autograd.grad((picture * upstream).sum(), [flat, x])

    with torch.no_grad():
        grad, layers = torch.full_like(flat, torch.nan), mlp.layers(flat)
        output, tape = mlp.forward(layers, x)
        torch.testing.assert_close(output, picture.detach())
        grad_x = mlp.backward(layers, tape, upstream, mlp.layers(grad))
    torch.testing.assert_close(grad, want_flat)
    torch.testing.assert_close(grad_x, want_x)


def test_a_projection_needs_points_of_two_columns() -> None:
    model = config_module.ModelConfig(head="projection")
    assert Architecture.of(model, 8).head == "projection"
    with pytest.raises(ConfigError, match=r"model\.head: projection needs points of two columns each, x and y, got 7"):
        Architecture.of(model, 7)


def test_initial_weights_are_spread_as_in_torch() -> None:
    initial = MLP((100, 50), ACTIVATIONS["relu"]).initial(torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    linear = nn.Linear(100, 50)
    assert initial.abs().max() <= 0.1
    assert initial.std() == pytest.approx(float(linear.weight.detach().std()), rel=0.05)


@pytest.mark.parametrize("learned", [True, False])
def test_kl_is_that_of_torch_distributions(learned: bool) -> None:
    mean = randn(P, B, K, seed=1)
    log_var = randn(P, B, K, seed=2) if learned else randn(P, 1, 1, seed=2)
    prior_mean, prior_scale = randn(P, 1, K, seed=3), randn(P, 1, K, seed=4).abs() + 0.1
    posterior = Normal(mean, (0.5 * log_var).exp().expand_as(mean))
    torch.testing.assert_close(
        our_kl(Posterior(mean, log_var)),
        kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(-1),
    )
    torch.testing.assert_close(
        our_kl(Posterior(mean, log_var), Prior(prior_mean, prior_scale**-2)),
        kl_divergence(posterior, Normal(prior_mean.expand_as(mean), prior_scale.expand_as(mean))).sum(-1),
    )


@pytest.mark.parametrize("posterior_kind", ["learned", "fixed", "none"])
@pytest.mark.parametrize("family_name", MODELS)
@pytest.mark.parametrize("noise_kind", config_module.NOISES)
def test_gradients_of_the_objective_are_those_of_autograd(
    family_name: str, posterior_kind: str, noise_kind: str
) -> None:
    family = build_family(Architecture(family_name, D, K, 6, 1, "tanh", posterior_kind, noise=noise_kind))
    flat = randn(P, family.n_parameters, seed=1).requires_grad_()
    rows = randn(P, B, family.row_parameters, seed=2).requires_grad_() if family.row_parameters else None
    mask = (randn(B, D, seed=3) > 0).double()
    x, noise = randn(B, D, seed=4) * mask, randn(B, K, seed=5)
    kl_weight, log_var = randn(P, 1, 1, seed=6).abs(), randn(P, 1, 1, seed=7)

    networks = family.layers(flat)
    posterior_params = family.encode(networks, x, mask)[0] if rows is None else rows
    posterior = family.posterior(posterior_params, log_var)
    std = 0.0 if posterior.log_var is None else (0.5 * posterior.log_var).exp()
    x_hat = family.decode(networks, posterior.mean + std * noise)
    squared_error = ((x_hat - x).square() * mask).sum((1, 2))
    # The likelihood spelt out by torch: noise of variance kl_weight / 2 · v_f, constants and scale taken off.
    obs_log_var = family.obs_log_var(networks)
    scale = (0.5 * kl_weight * (torch.ones(P, 1, D) if obs_log_var is None else obs_log_var.exp())).sqrt()
    constant = Normal(0.0, (0.5 * kl_weight).sqrt()).log_prob(torch.zeros(()))
    likelihood = ((constant - Normal(x_hat, scale).log_prob(x)) * mask).sum((1, 2)) * kl_weight.flatten()
    loss = likelihood + kl_weight.flatten() * our_kl(posterior).sum(1)
    sources = [flat] if rows is None else [flat, rows]
    want = torch.autograd.grad(loss.sum() / mask.sum(), sources)

    with torch.no_grad():
        grad, normaliser = torch.full_like(flat, torch.nan), mask.sum()
        networks, grads_out = family.layers(flat), family.layers(grad)
        decoder, obs_log_var = family.networks["decoder"], family.obs_log_var(networks)
        posterior_params, tape = family.encode(networks, x, mask) if rows is None else (rows, None)
        posterior = family.posterior(posterior_params, log_var)
        z, deviation = sample(posterior, noise)
        residual, grad_z = reconstruction(
            decoder,
            networks["decoder"],
            z,
            x,
            mask * (2 / normaliser),
            grads_out=grads_out["decoder"],
            obs_log_var=obs_log_var,
        )
        if obs_log_var is not None:
            weighted, grad_noise = noise_gradient(obs_log_var, residual, mask * (2 / normaliser), normaliser, kl_weight)
            log_variance_backward(networks["noise"], grad_noise, grads_out["noise"])
            torch.testing.assert_close(weighted, likelihood.detach())
        torch.testing.assert_close((residual.square().sum((1, 2)) * (normaliser / 2) ** 2), squared_error)
        learned = posterior_kind == "learned"
        ours = posterior_gradients(posterior, grad_z, deviation, kl_weight / normaliser, learned=learned)
        if rows is None:
            family.encode_backward(networks, tape, ours, grads_out)
        else:
            torch.testing.assert_close(ours, want[1])
    torch.testing.assert_close(grad, want[0])


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        pytest.param(AdamW, torch.optim.AdamW, id="adamw"),
        pytest.param(Adam, torch.optim.Adam, id="adam"),
        pytest.param(SGD, partial(torch.optim.SGD, momentum=0.9), id="sgd"),
        pytest.param(ROW_OPTIMISERS["sgd"], torch.optim.SGD, id="sgd-rows"),
    ],
)
def test_an_optimiser_is_torchs_with_each_members_hyperparameters(
    ours: Any, torchs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, lr, decay = randn(P, 6).float(), [0.1, 0.01, 0.3], [0.0, 0.5, 0.1]
    theirs = [row.clone().requires_grad_() for row in start]
    optimisers = [torchs([row], lr=lr[i], weight_decay=decay[i]) for i, row in enumerate(theirs)]
    on_cpu, elsewhere = start.clone(), start.clone()
    grad = torch.empty_like(start)
    both = [ours(parameter, grad, torch.zeros(2, P, 6), decay) for parameter in (on_cpu, elsewhere)]
    taken, rates = np.arange(5)[:, None].repeat(P, axis=1), np.tile(lr, (5, 1))
    members = (slice(0, 2), slice(2, 3))
    steps = [both[0].steps(some, taken[:, some], rates[:, some]) for some in members]
    monkeypatch.setattr(native, "is_available", lambda: False)  # elementwise operations, as on a GPU
    steps += [both[1].steps(some, taken[:, some], rates[:, some]) for some in members]
    for step in range(5):
        grad.copy_(randn(P, 6, seed=step + 1))
        for i, optimiser in enumerate(optimisers):
            theirs[i].grad = grad[i].clone()
            optimiser.step()
        for own in steps:
            next(own)
    for parameter in (on_cpu, elsewhere):
        torch.testing.assert_close(parameter, torch.stack([row.detach() for row in theirs]), rtol=1e-5, atol=1e-6)


def test_a_plateau_halves_as_torchs_does() -> None:
    weight = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=1.0)
    torchs, ours = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.5, patience=10), Plateau()
    for epoch in range(60):
        loss = max(0.5, 1 - epoch / 20) + 1e-5 * (epoch % 3)
        torchs.step(loss)
        ours.update(loss)
        assert ours.factor == sgd.param_groups[0]["lr"]
    assert ours.factor < 0.2


def test_a_population_of_linear_decoders_has_no_hidden_width_in_its_architecture() -> None:
    one = config_module.ModelConfig(latent=3, layers=0, hidden=128)
    other = config_module.ModelConfig(latent=3, layers=0, hidden=256)
    assert Architecture.of(one, D) == Architecture.of(other, D)


def test_pca_start_projects_each_row_on_the_components_of_complete_data() -> None:
    x = randn(40, 2, seed=1) @ randn(2, D, seed=2)
    mask = torch.ones_like(x, dtype=torch.bool)
    z = LATENT_INITS["pca"](x, mask, 3, torch.Generator().manual_seed(0))
    left = torch.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :2]
    # The first two are the standardised scores up to sign; the data has rank two, so the third is small noise.
    correlation = torch.corrcoef(torch.cat([z[:, :2], left], dim=1).mT)[:2, 2:]
    torch.testing.assert_close(correlation.abs(), torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(z[:, :2].square().mean(0), torch.ones(2, dtype=torch.float64))
    assert z[:, 2].std() < 0.2


@pytest.mark.parametrize("how", LATENT_INITS)
def test_every_start_is_finite_without_variance_or_observed_cells(how: str) -> None:
    x, mask = torch.zeros(6, D), torch.zeros(6, D, dtype=torch.bool)
    z = LATENT_INITS[how](x, mask, K, torch.Generator().manual_seed(0))
    assert z.shape == (6, K)
    assert torch.isfinite(z).all()


def test_the_iterated_start_finds_the_components_in_spite_of_holes() -> None:
    x = randn(200, 2, seed=1) @ randn(2, D, seed=2)
    mask = randn(200, D, seed=3) > -0.5
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :2]

    def unexplained(how: str) -> float:
        z = LATENT_INITS[how](x.masked_fill(~mask, torch.nan), mask, 2, generator)
        z = z - z.mean(0)
        return float((z @ torch.linalg.lstsq(z, left).solution - left).square().sum())

    assert unexplained("pca_iterated") < 0.5 * unexplained("pca")
    complete = torch.ones_like(mask)
    both = [LATENT_INITS[how](x, complete, 2, generator) for how in ("pca", "pca_iterated")]
    torch.testing.assert_close(both[0], both[1])
