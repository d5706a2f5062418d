"""Linear decoders in closed form: posteriors by linear algebra, training by expectation-maximisation (EM).

With x_f = b_f + z·w_f + noise of variance σ² v_f, kl_weight = 2σ² (see objective.py) and z ~ N(μ, P⁻¹), the posterior
of a row is Gaussian, over the features it observes:

    precision  A = P + Σ_f w_f w_fᵀ / (σ² v_f)          mean  A⁻¹ (P μ + Σ_f w_f (x_f − b_f) / (σ² v_f))

No other posterior has a lower objective, so EM minimises the objective itself: probabilistic PCA (Roweis 1998; Tipping
& Bishop 1999), factor analysis where the noise is learned (Rubin & Thayer 1982), with missing values (Ilin & Raiko
2010, JMLR 11, section 4). One iteration sees all rows and costs O(n d k² + n k³).

Plain EM converges slowly where the noise is small. Here the maximisation step frees the latents' prior to N(μ, Σ) and
then folds it back into the weights (parameter expansion; Liu, Rubin & Wu 1998, Biometrika 85).

Everything is for one member, in float64, since A is ill-conditioned for little noise. On a CPU the posteriors, which
take nearly all of the time, are computed by native/linear_kernels.py if Numba is available.

Shape comments: n rows, c rows of a chunk, d features, k latent dims; u = (k + 1) (k + 2) / 2 entries of the lower half
of a matrix of z̃ = (z, 1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadtune import native

_CHUNK_FLOATS = 2**21  # bounds the memory of the rows' matrices
_BLOCK_ROWS = 2048  # rows that are converted to float64 at once
_MIN_KL_WEIGHT = 1e-5  # replaces 0: without noise the posterior is a point and EM does not move
_MIN_RIDGE = 1e-9  # in units of the observed cells of a feature
_BISECTIONS = 80

NotPositiveDefinite: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""Raised where a system cannot be solved, as of a model that has diverged."""


class LinearDecoder(NamedTuple):
    """A linear decoder, in float64.

    Attributes:
        weight: (k, d).
        bias: (d,).
        obs_log_var: log v, (d,), of mean 0; None where all are 0.
    """

    weight: Tensor
    bias: Tensor
    obs_log_var: Tensor | None

    def precision(self, kl_weight: float) -> Tensor:
        """Returns 1 / (σ² v), (d,)."""
        scale = 2.0 / max(kl_weight, _MIN_KL_WEIGHT)
        return scale * (torch.ones_like(self.bias) if self.obs_log_var is None else torch.exp(-self.obs_log_var))


class EMStep(NamedTuple):
    """Result of one iteration of EM.

    Attributes:
        decoder: After the iteration.
        means: Posterior means (n, k) under the decoder before it, as are the sums.
        squared_error: Expected over the posteriors, summed over observed cells.
        weighted_error: The same in units of the noise, plus the cost of its log variances; see objective.py.
        kl: Summed over the rows, in nats.
    """

    decoder: LinearDecoder
    means: Tensor
    squared_error: float
    weighted_error: float
    kl: float


class _Moments(NamedTuple):
    """Sums over rows of the posteriors' moments."""

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
    decoder: LinearDecoder,
    x: Tensor,
    mask: Tensor,
    kl_weight: float,
    *,
    prior_mean: Tensor | float = 0.0,
    prior_precision: Tensor | float = 1.0,
) -> Tensor:
    """Returns the posterior means (n, k) of rows in closed form.

    Args:
        decoder: The decoder.
        x: (n, d), anything where missing.
        mask: (n, d), positive or True = observed.
        kl_weight: 2σ².
        prior_mean: Of the latents, (k,).
        prior_precision: Of the latents, diagonal, (k,).

    Raises:
        NotPositiveDefinite: The precision of a row's posterior is not.
    """
    k = len(decoder.weight)
    mean, precision = (torch.as_tensor(v).to(decoder.weight).expand(k) for v in (prior_mean, prior_precision))
    return _posteriors(decoder, x, mask, kl_weight, mean, precision)[0]


def _posteriors(
    decoder: LinearDecoder,
    x: Tensor,
    mask: Tensor,
    kl_weight: float,
    prior_mean: Tensor,
    prior_precision: Tensor,
    *,
    learn: bool = False,
) -> tuple[Tensor, _Moments | None]:
    """Returns the posterior means (n, k) of rows and, with ``learn``, the moments."""
    if x.is_cpu and native.is_available():
        return _by_kernel(decoder, x, mask, kl_weight, prior_mean, prior_precision, learn)
    (k, d), like, scaled = decoder.weight.shape, decoder.weight, decoder.weight * decoder.precision(kl_weight)
    outer = (scaled.mT[:, :, None] * decoder.weight.mT[:, None, :]).view(d, k * k)
    second, cross = like.new_zeros(d, (k + 1) ** 2), like.new_zeros(d, k + 1)
    squares, spread, log_det = like.new_zeros(d), like.new_zeros((k + 1) ** 2), like.new_zeros(())
    means = []
    size = max(1, _CHUNK_FLOATS // (k * k))
    for start in range(0, len(x), size):
        x_c, mask_c = _converted(x, mask, slice(start, start + size))  # (c, d)
        a = (mask_c @ outer).view(-1, k, k)
        a.diagonal(dim1=1, dim2=2).add_(prior_precision)
        factor = torch.linalg.cholesky(a)
        right = (((x_c - decoder.bias) * mask_c) @ scaled.mT + prior_precision * prior_mean)[..., None]  # A · means
        if not learn:
            means.append(torch.cholesky_solve(right, factor)[..., 0])
            continue
        covariance = torch.cholesky_inverse(factor)
        mean = (covariance @ right)[..., 0]
        extended = torch.cat([mean, mean.new_ones(len(mean), 1)], dim=1)  # (c, k + 1)
        moment = extended[:, :, None] * extended[:, None, :]
        moment[:, :k, :k] += covariance
        moment = moment.view(len(mean), -1)
        second += mask_c.mT @ moment
        spread += moment.sum(0)
        cross += x_c.mT @ extended
        squares += x_c.square().sum(0)
        log_det += 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
        means.append(mean)
    shape = k + 1, k + 1
    moments = _Moments(second.view(d, *shape), cross, squares, spread.view(shape), log_det)
    return torch.cat(means), moments if learn else None


def _converted(x: Tensor, mask: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Returns some rows of x, with 0 where missing, and of the mask in float64."""
    observed = mask[rows] > 0
    return torch.where(observed, x[rows], 0.0).double(), observed.double()


def _by_kernel(
    decoder: LinearDecoder,
    x: Tensor,
    mask: Tensor,
    kl_weight: float,
    prior_mean: Tensor,
    prior_precision: Tensor,
    learn: bool,
) -> tuple[Tensor, _Moments | None]:
    """Computes ``_posteriors`` by the compiled kernel."""
    from vadtune.native import linear_kernels as kernels

    weight, (k, d) = decoder.weight.numpy(), decoder.weight.shape
    scaled = np.ascontiguousarray((decoder.weight * decoder.precision(kl_weight)).numpy())
    rows, columns = np.tril_indices(k)
    shift, precision = (prior_precision * prior_mean).contiguous().numpy(), prior_precision.contiguous().numpy()
    bias = decoder.bias.contiguous().numpy()
    model = kernels.Model(scaled[rows] * weight[columns], scaled, bias, shift, precision)
    means = np.empty((len(x), k))
    u = (k + 1) * (k + 2) // 2 if learn else 0
    sums = kernels.Sums(np.zeros((u, d)), np.zeros((d, k + 1)), np.zeros(d), np.zeros(u))

    def run(part: slice) -> float:
        log_det = 0.0
        for start in range(part.start, part.stop, _BLOCK_ROWS):
            rows = slice(start, min(start + _BLOCK_ROWS, part.stop))
            values, observed = (each.contiguous().numpy() for each in _converted(x, mask, rows))
            log_det += kernels.posteriors(values, observed, model, means[rows], sums)
        return log_det

    # Parts would add to the same sums.
    threads = 1 if learn else torch.get_num_threads()
    log_dets = native.call_on_row_blocks(run, len(x), kernels.LANES, threads)
    if not all(map(math.isfinite, log_dets)):
        raise NotPositiveDefinite("the precision of a row's posterior is not positive definite")
    if not learn:
        return torch.from_numpy(means), None
    second, cross, squares, spread = map(torch.from_numpy, sums)
    index = _lower_index(k + 1)
    second = second[index].permute(2, 0, 1).contiguous()
    return torch.from_numpy(means), _Moments(second, cross, squares, spread[index], second.new_tensor(log_dets[0]))


def em_step(decoder: LinearDecoder, x: Tensor, mask: Tensor, kl_weight: float, ridge: float) -> EMStep:
    """Runs one iteration of EM over all rows.

    Args:
        decoder: Before the iteration.
        x: (n, d), anything where missing.
        mask: (n, d), positive or True = observed.
        kl_weight: 2σ².
        ridge: Penalty ridge · Σ w² on the loss times normaliser, in units in which each row's z has variance 1; it also
            adds as many observations of the common noise variance to every feature's own.

    Raises:
        NotPositiveDefinite: A system cannot be solved.
    """
    kl_weight = max(kl_weight, _MIN_KL_WEIGHT)
    n, k, like = len(x), len(decoder.weight), decoder.weight
    means, moments = _posteriors(decoder, x, mask, kl_weight, like.new_zeros(k), like.new_ones(k), learn=True)
    assert moments is not None
    counts = moments.second[:, -1, -1]
    error = moments.error(decoder.weight, decoder.bias)
    weighted = error
    if decoder.obs_log_var is not None:
        weighted = error * torch.exp(-decoder.obs_log_var) + 0.5 * kl_weight * counts * decoder.obs_log_var
    kl = 0.5 * (moments.spread.diagonal()[:-1].sum() - n * k + moments.log_det)
    sums = torch.stack([error.sum(), weighted.sum(), kl]).tolist()
    return EMStep(_maximisation(decoder, moments, n, kl_weight, ridge), means, *sums)


def _lower_index(k: int) -> Tensor:
    """Returns the position (k, k) of each entry of a symmetric matrix in its lower half, stored row after row."""
    index = np.zeros((k, k), np.int64)
    index[np.tril_indices(k)] = np.arange(k * (k + 1) // 2)
    return torch.from_numpy(np.maximum(index, index.T))


def _maximisation(decoder: LinearDecoder, moments: _Moments, n: int, kl_weight: float, ridge: float) -> LinearDecoder:
    """Returns the decoder that maximises the expected penalised likelihood.

    The prior of the latents is N(μ, Σ) here. With C the posteriors' spread about μ and λ the ridge, Σ solves

        Σ⁻¹ C Σ⁻¹ − Σ⁻¹ = 2 λ / (n kl_weight) · W Wᵀ

    for the current weights W; then every feature's weights solve

        (Σ_observed E[z̃ z̃ᵀ] + λ v_f Σ) w̃_f = Σ_observed x E[z̃]

    Both steps lower the penalised objective; z of variance Σ with weights W is z of variance 1 with weights Σ^½ W.
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
    root = vectors * values.sqrt() @ vectors.mT  # symmetric, so I where Σ is I: the latents do not keep rotating
    noise = torch.ones_like(counts) if decoder.obs_log_var is None else decoder.obs_log_var.exp()
    unknown = (counts == 0).to(counts)  # features no row observes: weights and bias are 0, noise is the common one
    system = moments.second.clone()
    penalty = ridge * noise + _MIN_RIDGE * (counts + unknown)
    system[:, :k, :k] += penalty[:, None, None] * variance
    system[:, k, k] += unknown
    w = torch.cholesky_solve(moments.cross[..., None], torch.linalg.cholesky(system))[..., 0].mT  # (k + 1, d)
    weight, bias = w[:k], w[k]
    obs_log_var = decoder.obs_log_var
    if obs_log_var is not None:
        error = moments.error(weight, bias) + unknown * 0.5 * kl_weight
        obs_log_var = _noise_log_variances(error, counts + unknown, kl_weight, ridge)
    return LinearDecoder(root @ weight, bias + mean @ weight, obs_log_var)


def _noise_log_variances(error: Tensor, counts: Tensor, kl_weight: float, ridge: float) -> Tensor:
    """Returns the log variances (d,) of mean 0 that minimise the loss for given expected squared errors (d,).

        v_f = (error_f + ridge kl_weight / 2) / ((count_f + ridge) kl_weight / 2 + m)

    where m, found by bisection, makes the mean of their logarithms 0.
    """
    half = 0.5 * kl_weight
    error = error + ridge * half
    error = error.clamp(min=1e-9 * float(error.max()) + 1e-30)
    parts = (counts + ridge) * half
    low, high = -parts.min(), parts.new_tensor(0.0) + (error.max() + parts.max())
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        too_large = (error.log() - (parts + middle).log()).mean() > 0  # variances fall with m
        low, high = torch.where(too_large, middle, low), torch.where(too_large, high, middle)
    obs_log_var = error.log() - (parts + high).log()
    return obs_log_var - obs_log_var.mean()


def regression(latents: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights (k, d) and bias (d,) of a ridge regression of observed cells on latents (n, k), to start EM."""
    (n, k), d = latents.shape, x.shape[1]
    system, right, counts = (x.new_zeros(d, size, dtype=torch.float64) for size in ((k + 1) ** 2, k + 1, 1))
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        z = torch.cat([latents[rows], latents.new_ones(len(latents[rows]), 1)], dim=1).double()
        x_b, mask_b = _converted(x, mask, rows)
        system += mask_b.mT @ (z[:, :, None] * z[:, None, :]).flatten(1)
        right += x_b.mT @ z
        counts += mask_b.sum(0)[:, None]
    system = system.view(d, k + 1, k + 1)
    system += 1e-2 * (1 + counts)[:, :, None] * torch.eye(k + 1, dtype=system.dtype, device=system.device)
    w = torch.linalg.solve(system, right).mT
    return w[:-1], w[-1]
