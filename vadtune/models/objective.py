"""The objective of VAD and VAE over the observed cells of a batch, and its gradients.

    loss = (Σ_observed (x − x̂)² + kl_weight · Σ_rows KL(q(z|x) ‖ prior)) / normaliser

With a Gaussian likelihood of variance σ² and kl_weight = 2σ², this is the negative evidence lower bound up to constants
and a factor (VAD: Zadeh et al. 2019, arXiv 1903.00840, section 3; VAE: Kingma & Welling 2014, arXiv 1312.6114, eq. 10).
The normaliser of training is the batch's number of observed cells, so the useful range of kl_weight does not depend on
the data's width; the ``ratio_kl`` of the published VAD code is kl_weight divided by the observed cells of a row.

With a noise variance σ² v_f for every feature f, of geometric mean σ² (see observation_noise.py), the loss is

    loss = (Σ_observed ((x − x̂)² / v_f + kl_weight / 2 · log v_f) + kl_weight · Σ_rows KL) / normaliser

Shape comments: p members, b rows, d features, k latent dims, s posterior parameters of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vadtune.models.networks import MLP, Layer


class Prior(NamedTuple):
    """A diagonal Gaussian over latents; N(0, I) by default."""

    mean: Tensor | float = 0.0  # (p, 1, k)
    precision: Tensor | float = 1.0  # (p, 1, k)


STANDARD_PRIOR = Prior()


class Posterior(NamedTuple):
    """Approximate posteriors N(mean, exp(log_var)) of b rows.

    ``log_var`` is (p, b, k) when learned per row, (p, 1, 1) when fixed, None for a deterministic latent.
    """

    mean: Tensor  # (p, b, k)
    log_var: Tensor | None


def kl_divergence(posterior: Posterior, prior: Prior = STANDARD_PRIOR) -> Tensor:
    """Returns KL(q ‖ prior) in nats, (p, b), summed over latent dims (Kingma & Welling 2014, appendix B).

    For a deterministic latent only the term that depends on the mean: minimising the loss is then maximum a posteriori
    estimation.
    """
    distance = (posterior.mean - prior.mean).square() * prior.precision
    if posterior.log_var is not None:
        scaled = posterior.log_var.exp() * prior.precision
        distance = distance + (scaled - 1.0 - scaled.log())
    return 0.5 * distance.sum(-1)


def sample(posterior: Posterior, eps: Tensor) -> tuple[Tensor, Tensor | None]:
    """Draws z = mean + exp(log_var / 2) · eps for each row; returns z and z - mean (None if deterministic).

    Args:
        posterior: Of b rows.
        eps: Standard normal, broadcast to (p, b, k).
    """
    if posterior.log_var is None:
        return posterior.mean, None
    deviation = (0.5 * posterior.log_var).exp() * eps
    return posterior.mean + deviation, deviation


def reconstruction(
    decoder: MLP,
    layers: list[Layer],
    z: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    grads_out: list[Layer] | None = None,
    grad_z: Tensor | bool = True,
    dropout: Sequence[Tensor] | None = None,
    obs_log_var: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decodes z and backpropagates the squared error / (v · normaliser) to the decoder's weights and to z.

    Args:
        decoder: Shape of the decoder.
        layers: Its weights.
        z: (p, b, k).
        x: (b, d) or (p, b, d), with 0 in place of missing cells.
        weight: Like x: 2 / normaliser where observed, 0 where missing, so missing cells affect nothing.
        grads_out: Where the gradients of the decoder's weights are written; None for a frozen decoder.
        grad_z: Where the gradient with respect to z is written; True for new memory.
        dropout: Factors on the output of every hidden layer, (p, b, o) each; in training only.
        obs_log_var: log v_f, (p, 1, d); None where all are 0.

    Returns:
        weight · (x̂ − x), (p, b, d), and the gradient with respect to z (p, b, k).
    """
    x_hat, tape = decoder.forward(layers, z, dropout)
    residual = x_hat.sub_(x).mul_(weight)
    grad = residual if obs_log_var is None else residual * torch.exp(-obs_log_var)
    return residual, decoder.backward(layers, tape, grad, grads_out, grad_input=grad_z)


def noise_gradient(
    obs_log_var: Tensor, residual: Tensor, weight: Tensor, normaliser: Tensor, kl_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns Σ_observed ((x − x̂)² / v_f + kl_weight / 2 · log v_f), (p,), and the loss gradient of log v, (p, 1, d).

        ∂loss / ∂log v_f = Σ_observed (kl_weight / 2 − (x − x̂)² / v_f) / normaliser

    Args:
        obs_log_var: log v_f, (p, 1, d).
        residual: First result of ``reconstruction``.
        weight: The weight it was called with.
        normaliser: Observed cells of the batch, ([p,]).
        kl_weight: (p, 1, 1).
    """
    normaliser = normaliser.view(-1, 1, 1)
    error = residual.square().sum(1, keepdim=True) * (normaliser / 4) * torch.exp(-obs_log_var)
    spread = 0.5 * kl_weight * (0.5 * weight.sum(-2, keepdim=True))
    loss = (error + spread * obs_log_var) * normaliser
    return loss.sum((1, 2)), spread - error


def posterior_gradients(
    posterior: Posterior,
    grad_z: Tensor,
    deviation: Tensor | None,
    weight: Tensor,
    *,
    learned: bool,
    prior: Prior = STANDARD_PRIOR,
) -> Tensor:
    """Returns the gradient of the loss with respect to the posterior parameters (p, b, s).

    Args:
        posterior: Of b rows.
        grad_z: Second result of ``reconstruction`` (p, b, k).
        deviation: Second result of ``sample``.
        weight: kl_weight / normaliser, broadcast to (p, b, 1).
        learned: Whether the posterior parameters include log variances.
        prior: The prior of the latents.
    """
    mean, log_var = posterior
    grad_mean = grad_z + weight * (prior.precision * (mean - prior.mean))
    if not learned or log_var is None or deviation is None:
        return grad_mean
    grad_log_var = (log_var.exp() * prior.precision - 1.0).mul_(weight).addcmul_(grad_z, deviation).mul_(0.5)
    return torch.cat([grad_mean, grad_log_var], dim=-1)
