"""The objective of VAD and VAE, and its gradients, over the observed cells of a batch.

    loss = (Σ_observed (x − x̂)² + kl_weight · Σ_rows KL(q(z|x) ‖ prior)) / normaliser

With a Gaussian likelihood of variance σ² this is the negative evidence lower bound (Kingma & Welling 2014, eq. 10; for
VAD: Zadeh et al. 2019, arXiv 1903.00840, section 3) up to constants and a factor, kl_weight standing for 2σ². Training
divides by the batch's number of observed cells, so that the useful range of kl_weight does not move with the width of
the data; the ``ratio_kl`` of the published VAD code is this kl_weight divided by the observed cells per row.

Shape comments: p members, b rows, d features, k latent dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vadtune.model.networks import MLP, Layer


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


class Terms(NamedTuple):
    """Sums over a batch, one value per member (p,)."""

    squared_error: Tensor
    kl: Tensor


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


class Gradients(NamedTuple):
    """Gradients of ``loss`` with respect to the posterior; ``log_var`` is None unless it is learned."""

    mean: Tensor  # (p, b, k)
    log_var: Tensor | None


def objective(
    decoder: MLP,
    layers: list[Layer],
    posterior: Posterior,
    x: Tensor,
    mask: Tensor,
    *,
    noise: Tensor,
    kl_weight: Tensor,
    normaliser: Tensor | float,
    learned: bool,
    prior: Prior = STANDARD_PRIOR,
    into: list[Layer] | None = None,
) -> tuple[Terms, Gradients]:
    """Computes the terms of the loss of one batch, with one draw per row, and the loss's gradients.

    Args:
        decoder: Shape of the decoder.
        layers: Its weights.
        posterior: Of the batch's rows.
        x: (b, d), with 0 in place of missing cells.
        mask: (b, d) float, 1 = observed. Missing cells reach neither the terms nor the gradients.
        noise: Standard normal, broadcast to (p, b, k).
        kl_weight: (p, 1, 1).
        normaliser: What the sums are divided by.
        learned: Whether a gradient for ``posterior.log_var`` is wanted.
        prior: The prior of the latents.
        into: Where the gradients of the decoder's weights are written; None when it is frozen.
    """
    mean, log_var = posterior
    deviation = None if log_var is None else (0.5 * log_var).exp() * noise  # (p, b, k)
    outputs = decoder.forward(layers, mean if deviation is None else mean + deviation)
    error = (outputs[-1] - x).mul_(mask)  # (p, b, d)
    terms = Terms(error.square().sum((1, 2)), kl_divergence(posterior, prior).sum(1))

    grad_z = decoder.backward(layers, outputs, error.mul_(2.0 / normaliser), into)
    weight = kl_weight / normaliser
    grad_mean = grad_z + weight * prior.precision * (mean - prior.mean)
    if not learned or log_var is None or deviation is None:
        return terms, Gradients(grad_mean, None)
    grad_log_var = 0.5 * (grad_z * deviation + weight * (log_var.exp() * prior.precision - 1.0))
    return terms, Gradients(grad_mean, grad_log_var)
