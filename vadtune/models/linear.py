"""Linear decoders, solved: posteriors in closed form, training by expectation-maximisation (EM).

With x_f = b_f + z·w_f + noise of variance σ² v_f, kl_weight = 2σ² (see objective.py) and z ~ N(μ, P⁻¹), the posterior
of a row is Gaussian, over the columns it observes:

    precision  A = P + Σ_f w_f w_fᵀ / (σ² v_f)          mean  A⁻¹ (P μ + Σ_f w_f (x_f − b_f) / (σ² v_f))

No posterior lowers the objective further, so what EM minimises is the objective itself: probabilistic PCA (Tipping &
Bishop 1999), factor analysis where the noise is learned (Rubin & Thayer 1982), with missing values (Ilin & Raiko 2010,
JMLR 11, section 4). One iteration sees all rows and costs O(n d k² + n k³).

Plain EM crawls where the noise is small. Here the latents' prior is freed to N(μ, Σ) during a maximisation and folded
back into the weights after it (parameter expansion; Liu, Rubin & Wu 1998, Biometrika 85).

All of it is for one member, in 64 bits: with little noise A is ill-conditioned. On a CPU the posteriors, which take
nearly all of the time, are left to machine code (native/linear.py) where there is some.

Shape comments: n rows, c rows of a chunk, d features, k latent dimensions; u = (k + 1) (k + 2) / 2, the lower half of a
matrix of z̃.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadtune.models.products import on_threads
from vadtune.native import kernels, run

_CHUNK_FLOATS = 2**21  # of the matrices of the rows that are solved at once
_LEAST_KL_WEIGHT = 1e-5  # stands for 0: without noise the posterior is a point and EM does not move
_LEAST_RIDGE = 1e-9  # in units of the observed cells of a column
_BISECTIONS = 80

NotSolved: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""What ``iterate`` and ``posterior_means`` raise beyond 64 bits: values far from 1 and next to no noise, or NaN."""


class Linear(NamedTuple):
    """A linear decoder.

    Attributes:
        weight: (k, d).
        bias: (d,).
        log_noise: log v, (d,), of mean 0; None where all are 0.
    """

    weight: Tensor
    bias: Tensor
    log_noise: Tensor | None

    def precision(self, kl_weight: float) -> Tensor:
        """Returns 1 / (σ² v), (d,)."""
        scale = 2.0 / max(kl_weight, _LEAST_KL_WEIGHT)
        return scale * (torch.ones_like(self.bias) if self.log_noise is None else torch.exp(-self.log_noise))


class Iteration(NamedTuple):
    """An iteration of EM: the decoder after it, and what was found of the one before it.

    Attributes:
        decoder: After the iteration.
        means: Posterior means (n, k).
        squared_error: Expected over the posteriors, summed over observed cells.
        weighted: The same in units of the noise, with what its log variances cost; see objective.py.
        kl: Summed over the rows, in nats.
    """

    decoder: Linear
    means: Tensor
    squared_error: float
    weighted: float
    kl: float


class _Moments(NamedTuple):
    """Sums over rows of what the posteriors say, z̃ = (z, 1)."""

    second: Tensor  # E[z̃ z̃ᵀ] over the rows that observe each feature (d, k + 1, k + 1)
    cross: Tensor  # x E[z̃] likewise (d, k + 1)
    squares: Tensor  # x² likewise (d,)
    spread: Tensor  # E[z̃ z̃ᵀ] over all rows (k + 1, k + 1)
    log_det: Tensor  # log |A| over all rows, ()

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Returns the expected squared error of each feature (d,)."""
        w = torch.cat([weight, bias[None]]).mT  # (d, k + 1)
        quadratic = torch.einsum("di,dij,dj->d", w, self.second, w)
        return (self.squares - 2 * (w * self.cross).sum(1) + quadratic).clamp(min=0.0)


def posterior_means(
    decoder: Linear,
    x: Tensor,
    mask: Tensor,
    kl_weight: float,
    *,
    prior_mean: Tensor | float = 0.0,
    prior_precision: Tensor | float = 1.0,
) -> Tensor:
    """Returns the posterior means (n, k) of rows.

    Args:
        decoder: In 64 bits.
        x: (n, d), with 0 in place of missing cells.
        mask: (n, d) float, 1 = observed.
        kl_weight: 2σ².
        prior_mean: Of the latents, (k,).
        prior_precision: Of the latents, diagonal, (k,).
    """
    k = len(decoder.weight)
    mean, diagonal = (torch.as_tensor(v).to(decoder.weight).expand(k) for v in (prior_mean, prior_precision))
    if _natively(x):
        return _by_machine_code(decoder, x, mask, kl_weight, mean, diagonal)[0]
    parts = _posteriors(decoder, x, mask, kl_weight, mean, diagonal)
    return torch.cat([torch.cholesky_solve(right, factor)[..., 0] for _, _, right, factor in parts])


def _posteriors(
    decoder: Linear, x: Tensor, mask: Tensor, kl_weight: float, prior_mean: Tensor, prior_precision: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yields values and masks (c, d), A times the posterior means (c, k, 1) and Cholesky factors of A (c, k, k), chunk
    after chunk."""
    weight, bias, _ = decoder
    k, d = weight.shape
    scaled = weight * decoder.precision(kl_weight)  # (k, d)
    outer = (scaled.mT[:, :, None] * weight.mT[:, None, :]).view(d, k * k)
    size = max(1, _CHUNK_FLOATS // (k * k))
    for start in range(0, len(x), size):
        x_c, mask_c = x[start : start + size].double(), mask[start : start + size].double()
        a = (mask_c @ outer).view(-1, k, k)
        a.diagonal(dim1=1, dim2=2).add_(prior_precision)
        factor = torch.linalg.cholesky(a)
        right = ((x_c - bias) * mask_c) @ scaled.mT + prior_precision * prior_mean
        yield x_c, mask_c, right[..., None], factor


def _natively(x: Tensor) -> bool:
    return x.is_cpu and kernels("linear") is not None


def _by_machine_code(
    decoder: Linear,
    x: Tensor,
    mask: Tensor,
    kl_weight: float,
    prior_mean: Tensor,
    prior_precision: Tensor,
    sums: tuple[np.ndarray, ...] | None = None,
) -> tuple[Tensor, float]:
    """Returns the posterior means (n, k) of rows, and log |A| over all rows; adds their moments to ``sums``, if given:
    those of _Moments but the last, of symmetric matrices the lower half, and features last."""
    native = kernels("linear")
    assert native is not None
    weight, (k, d) = decoder.weight.numpy(), decoder.weight.shape
    scaled = np.ascontiguousarray((decoder.weight * decoder.precision(kl_weight)).numpy())
    rows, columns = np.tril_indices(k)
    outer, bias = scaled[rows] * weight[columns], decoder.bias.contiguous().numpy()
    prior = (prior_precision * prior_mean).contiguous().numpy(), prior_precision.contiguous().numpy()
    x_true, seen, means = x.double().contiguous().numpy(), mask.double().contiguous().numpy(), np.empty((len(x), k))
    into = sums or (np.empty((0, d)), np.empty((0, 0)), np.empty(0), np.empty(0))

    def find(part: slice) -> float:
        return float(
            run(native.posteriors, x_true[part], seen[part], outer, scaled, bias, *prior, means[part], *into),
        )

    log_dets = on_threads(find, len(x), native.BLOCK) if sums is None else [find(slice(0, len(x)))]
    if not all(map(math.isfinite, log_dets)):
        raise NotSolved("the system of a row is not positive definite")
    return torch.from_numpy(means), sum(log_dets)


def iterate(decoder: Linear, x: Tensor, mask: Tensor, kl_weight: float, ridge: float) -> Iteration:
    """Returns one iteration of EM over all rows.

    Args:
        decoder: In 64 bits.
        x: (n, d), with 0 in place of missing cells.
        mask: (n, d) float, 1 = observed.
        kl_weight: 2σ².
        ridge: Added to the loss times normaliser as ridge · Σ w², in the units in which each row's z has variance 1;
            and so many observations of noise of the common variance are added to every feature's own.
    """
    kl_weight = max(kl_weight, _LEAST_KL_WEIGHT)
    means, moments = _expectation(decoder, x, mask, kl_weight)
    n, k, counts = len(x), len(decoder.weight), moments.second[:, -1, -1]
    error = moments.error(decoder.weight, decoder.bias)
    weighted = error.sum()
    if decoder.log_noise is not None:
        noisy = error * torch.exp(-decoder.log_noise) + 0.5 * kl_weight * counts * decoder.log_noise
        weighted = noisy.sum()
    kl = 0.5 * (moments.spread.diagonal()[:-1].sum() - n * k + moments.log_det)
    found = torch.stack([error.sum(), weighted, kl]).tolist()
    return Iteration(_maximisation(decoder, moments, n, kl_weight, ridge), means, *found)


def _expectation(decoder: Linear, x: Tensor, mask: Tensor, kl_weight: float) -> tuple[Tensor, _Moments]:
    """Returns the posterior means (n, k) and what the maximisation needs of the posteriors."""
    (k, d), like = decoder.weight.shape, decoder.weight
    if _natively(x):
        u = (k + 1) * (k + 2) // 2
        sums = np.zeros((u, d)), np.zeros((d, k + 1)), np.zeros(d), np.zeros(u)
        found, log_dets = _by_machine_code(decoder, x, mask, kl_weight, like.new_zeros(k), like.new_ones(k), sums)
        lower_second, cross, squares, lower_spread = map(torch.from_numpy, sums)
        place = _places(k + 1)
        second = lower_second[place].permute(2, 0, 1).contiguous()
        return found, _Moments(second, cross, squares, lower_spread[place], like.new_tensor(log_dets))
    second, cross = like.new_zeros(d, (k + 1) ** 2), like.new_zeros(d, k + 1)
    squares, spread, log_det = like.new_zeros(d), like.new_zeros((k + 1) ** 2), like.new_zeros(())
    means = []
    for x_c, mask_c, right, factor in _posteriors(decoder, x, mask, kl_weight, like.new_zeros(k), like.new_ones(k)):
        covariance = torch.cholesky_inverse(factor)
        mean = (covariance @ right)[..., 0]
        extended = torch.cat([mean, mean.new_ones(len(mean), 1)], dim=1)  # (c, k + 1)
        moment = extended[:, :, None] * extended[:, None, :]
        moment[:, :k, :k] += covariance
        moment = moment.view(len(mean), -1)
        second += mask_c.mT @ moment
        spread += moment.sum(0)
        cross += (x_c * mask_c).mT @ extended
        squares += (x_c.square() * mask_c).sum(0)
        log_det += 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
        means.append(mean)
    shape = k + 1, k + 1
    return torch.cat(means), _Moments(second.view(d, *shape), cross, squares, spread.view(shape), log_det)


def _places(k: int) -> Tensor:
    """Returns where the entries of a symmetric matrix (k, k) are in its lower half."""
    places = np.zeros((k, k), np.int64)
    places[np.tril_indices(k)] = np.arange(k * (k + 1) // 2)
    return torch.from_numpy(np.maximum(places, places.T))


def _maximisation(decoder: Linear, moments: _Moments, n: int, kl_weight: float, ridge: float) -> Linear:
    """Returns the decoder that the posteriors ask for.

    The prior of the latents is N(μ, Σ) here. With C the posteriors' spread about μ and λ the ridge, Σ solves

        Σ⁻¹ C Σ⁻¹ − Σ⁻¹ = 2 λ / (n kl_weight) · W Wᵀ

    for the weights there are; then every feature's weights solve

        (Σ_observed E[z̃ z̃ᵀ] + λ v_f Σ) w̃_f = Σ_observed x E[z̃]

    Each lowers the penalised objective, in which z of variance Σ and weights W are z of variance 1 and Σ^½ W.
    """
    k = len(decoder.weight)
    counts = moments.second[:, -1, -1]
    mean = moments.spread[:k, k] / n
    spread = moments.spread[:k, :k] / n - torch.outer(mean, mean)
    lower = torch.linalg.cholesky(spread)
    pull = lower.mT @ decoder.weight
    values, vectors = torch.linalg.eigh((2 * ridge / (n * kl_weight)) * pull @ pull.mT)
    stretched = (1 + torch.sqrt(1 + 4 * values.clamp(min=0.0))) / 2
    root = lower @ vectors / stretched.sqrt()
    variance = root @ root.mT  # Σ
    values, vectors = torch.linalg.eigh(variance)
    root = vectors * values.sqrt() @ vectors.mT  # the symmetric one, which is I where Σ is: nothing turns for ever
    noise = torch.ones_like(counts) if decoder.log_noise is None else decoder.log_noise.exp()
    unknown = (counts == 0).to(counts)  # what no row observes: its weights and bias are 0, its noise the common one
    system = moments.second.clone()
    penalty = ridge * noise + _LEAST_RIDGE * (counts + unknown)
    system[:, :k, :k] += penalty[:, None, None] * variance
    system[:, k, k] += unknown
    solved = torch.cholesky_solve(moments.cross[..., None], torch.linalg.cholesky(system))[..., 0].mT  # (k + 1, d)
    weight, bias = solved[:k], solved[k]
    log_noise = decoder.log_noise
    if log_noise is not None:
        error = moments.error(weight, bias) + unknown * 0.5 * kl_weight
        log_noise = _log_noise(error, counts + unknown, kl_weight, ridge)
    return Linear(root @ weight, bias + mean @ weight, log_noise)


def _log_noise(error: Tensor, counts: Tensor, kl_weight: float, ridge: float) -> Tensor:
    """Returns the log variances (d,) of mean 0 that suit the expected squared errors of the features:

        v_f = (error_f + ridge kl_weight / 2) / ((count_f + ridge) kl_weight / 2 + m)

    with the m, found by bisection, that makes their logarithms' mean 0.
    """
    half = 0.5 * kl_weight
    error = error + ridge * half
    error = error.clamp(min=1e-9 * float(error.max()) + 1e-30)
    parts = (counts + ridge) * half
    low, high = -parts.min(), parts.new_tensor(0.0) + (error.max() + parts.max())
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        too_great = (error.log() - (parts + middle).log()).mean() > 0  # variances fall with m
        low, high = torch.where(too_great, middle, low), torch.where(too_great, high, middle)
    log_noise = error.log() - (parts + high).log()
    return log_noise - log_noise.mean()


def regression(latents: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights (k, d) and biases (d,) that give the observed cells of rows from latents (n, k): a start."""
    z = torch.cat([latents, latents.new_ones(len(latents), 1)], dim=1).double()
    x, mask = x.double(), mask.double()
    width = z.shape[1]
    system = (mask.mT @ (z[:, :, None] * z[:, None, :]).flatten(1)).view(-1, width, width)
    system += 1e-2 * (1 + mask.sum(0))[:, None, None] * torch.eye(width, dtype=z.dtype, device=z.device)
    solved = torch.linalg.solve(system, (x * mask).mT @ z).mT
    return solved[:-1], solved[-1]
