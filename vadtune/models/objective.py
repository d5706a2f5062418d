"""The objective of VAD and VAE, and its gradients, over the observed cells of a batch.

    loss = (Σ_observed (x − x̂)² + kl_weight · Σ_rows KL(q(z|x) ‖ prior)) / normaliser

With a Gaussian likelihood of variance σ² this is the negative evidence lower bound (Kingma & Welling 2014, eq. 10; for
VAD: Zadeh et al. 2019, arXiv 1903.00840, section 3) up to constants and a factor, kl_weight standing for 2σ². Training
divides by the batch's number of observed cells, so that the useful range of kl_weight does not move with the width of
the data; the ``ratio_kl`` of the published VAD code is this kl_weight divided by the observed cells of a row.

With a noise variance σ² v_f for every feature f, of geometric mean σ² (see noise.py), it becomes

    loss = (Σ_observed ((x − x̂)² / v_f + kl_weight / 2 · log v_f) + kl_weight · Σ_rows KL) / normaliser

and is the one above where all v_f are 1.

Shape comments: p members, b rows, d features, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vadtune.models.networks import MLP, Layer, Workspace


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
    """Returns KL(q ‖ prior) in nats, (p, b), summed over latent dimensions (Kingma & Welling 2014, appendix B).

    For a deterministic latent it is the term that depends on the mean, which makes the objective a maximum a posteriori
    estimate.
    """
    distance = (posterior.mean - prior.mean).square() * prior.precision
    if posterior.log_var is not None:
        scaled = posterior.log_var.exp() * prior.precision
        distance = distance + (scaled - 1.0 - scaled.log())
    return 0.5 * distance.sum(-1)


def draw(posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns one draw per row, z = mean + deviation, and the deviation (None for a deterministic latent).

    Args:
        posterior: Of b rows.
        noise: Standard normal, broadcast to (p, b, k).
    """
    if posterior.log_var is None:
        return posterior.mean, None
    deviation = (0.5 * posterior.log_var).exp() * noise
    return posterior.mean + deviation, deviation


def reconstruction(
    decoder: MLP,
    layers: list[Layer],
    z: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    into: list[Layer] | None = None,
    workspace: Workspace | None = None,
    grad_z: Tensor | bool = True,
    dropout: Sequence[Tensor] | None = None,
    log_noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decodes z and carries the gradient of squared error / (noise · normaliser) back to it.

    Args:
        decoder: Shape of the decoder.
        layers: Its weights.
        z: (p, b, k).
        x: (b, d) or (p, b, d), with 0 in place of missing cells.
        weight: Like x: 2 / normaliser where observed, 0 where missing, so that missing cells reach nothing.
        into: Where the gradients of the decoder's weights are written; None when it is frozen.
        workspace: Memory for the passes.
        grad_z: Where the gradient with respect to z is to be written; True for new memory.
        dropout: Factors on the output of every hidden layer, (p, b, o) each; only in training.
        log_noise: log v_f, (p, 1, d); None where all are 0.

    Returns:
        weight · (x̂ − x), (p, b, d), which is the gradient of squared error / normaliser with respect to x̂, and the
        gradient of squared error / (noise · normaliser) with respect to z (p, b, k).
    """
    x_hat, tape = decoder.forward(layers, z, workspace, dropout)
    residual = x_hat.sub_(x).mul_(weight)
    grad = residual if log_noise is None else residual * torch.exp(-log_noise)
    return residual, decoder.backward(layers, tape, grad, into, workspace, to_input=grad_z)


def noise_gradient(
    log_noise: Tensor, residual: Tensor, weight: Tensor, normaliser: Tensor, kl_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the part of the loss that holds the noise, times normaliser (p,), and the gradient of the loss with
    respect to log v (p, 1, d):

        ∂loss / ∂log v_f = Σ_observed (kl_weight / 2 − (x − x̂)² / v_f) / normaliser

    Args:
        log_noise: log v_f, (p, 1, d).
        residual: What ``reconstruction`` returned first.
        weight: What it was given.
        normaliser: Observed cells of the batch, ([p,]).
        kl_weight: (p, 1, 1).
    """
    normaliser = normaliser.view(-1, 1, 1)
    error = residual.square().sum(1, keepdim=True) * (normaliser / 4) * torch.exp(-log_noise)
    spread = 0.5 * kl_weight * (0.5 * weight.sum(-2, keepdim=True))
    loss = (error + spread * log_noise) * normaliser
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
    """Returns the gradient of the loss with respect to the posterior_params of a posterior (p, b, s).

    Args:
        posterior: Of b rows.
        grad_z: Gradient of the reconstruction with respect to z (p, b, k).
        deviation: What ``draw`` returned.
        weight: kl_weight / normaliser, broadcast to (p, b, 1).
        learned: Whether the posterior_params hold a log variance besides the mean.
        prior: The prior of the latents.
    """
    mean, log_var = posterior
    grad_mean = grad_z + weight * (prior.precision * (mean - prior.mean))
    if not learned or log_var is None or deviation is None:
        return grad_mean
    grad_log_var = (log_var.exp() * prior.precision - 1.0).mul_(weight).addcmul_(grad_z, deviation).mul_(0.5)
    return torch.cat([grad_mean, grad_log_var], dim=-1)
