"""Inference: fits the posteriors of new rows to their observed cells under a frozen decoder.

Posteriors of models in closed form are computed by linear algebra; see models/linear_em.py.

A row's result does not depend on the other rows: the objective is a sum over rows, Adam is elementwise, and all rows
share the draws of a step.

Shape comments: p models, n rows, m train rows, d features, k latent dims, s posterior parameters, M network parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadtune import native
from vadtune.config import TrialConfig
from vadtune.core.randomness import Purpose, derived_generator, standard_normal
from vadtune.core.sampling import sample_rows
from vadtune.data import MaskedRows, Scaler
from vadtune.models import Architecture, Family, Networks, build_family
from vadtune.models.linear_em import LinearDecoder, NotPositiveDefinite, posterior_means
from vadtune.models.objective import STANDARD_PRIOR, Prior, posterior_gradients, reconstruction, sample
from vadtune.training import native_epoch
from vadtune.training.optimiser import SCHEDULES, AdamW

MOST_LATENTS = 10_000
"""Train rows whose latents a model keeps: enough for the moments of a train prior and for starts of new rows."""
_STARTS = 2048
"""Train rows that new rows may start from; with more of them, ``infer.start: auto`` is ``linear``.

On digits (1,257 rows) ``nearest`` is better after all steps, RMSE .175 against .181; on 49,412 images of 784 pixels
``linear`` is, after any number of steps: .0556 against .1122 after 10 of 100, .0492 against .0494 after all.
"""
_NEAREST_ROWS = 256  # rows whose distances to all train rows fit in the cache
_CHUNK_FLOATS = 2**22  # bounds a chunk's largest intermediate, so that it stays near the cache


@dataclass(frozen=True)
class FittedModel:
    """A trained model, ready to impute new rows.

    Attributes:
        config: The configuration.
        weights: Network parameters (M,).
        latents: Posterior parameters of the train rows, or of ``sample_rows`` of them, (m, s):
            starts for new rows, and the sample that a train prior is fitted to.
        scaler: From the source's units to the model's; None before it is known.
        feature_names: Names of the features; empty before they are known.
    """

    config: TrialConfig
    weights: Tensor
    latents: Tensor
    scaler: Scaler | None = None
    feature_names: tuple[str, ...] = ()

    def with_metadata(self, scaler: Scaler, feature_names: Sequence[str]) -> FittedModel:
        """Returns a copy of the model with the scaler and feature names of its data."""
        return replace(self, scaler=scaler, feature_names=tuple(feature_names))

    def reconstruct(self, part: MaskedRows) -> np.ndarray:
        """Returns x_hat, the decoded posterior means of rows, float32 (n, d), in the scaler's units."""
        return np.asarray(reconstruct([self], part)[0])

    def reconstruct_train(self, features: int) -> np.ndarray:
        """Returns the decoded posterior means, at the end of training, of the rows of ``latents``, float32 (m, d)."""
        inference = _Inference([self], features, 1.0)
        return np.asarray(inference.decoded(inference.latents)[0].cpu())

    def impute(self, part: MaskedRows) -> np.ndarray:
        """Returns the rows with missing cells replaced by reconstructions, float32 (n, d), in the scaler's units."""
        return np.where(part.mask, part.x, self.reconstruct(part))


class Inferred(NamedTuple):
    """Inference results of several models.

    Attributes:
        x_hat: Decoded posterior means, float32 (p, n, d), in the scaler's units.
        posterior_params: Posterior parameters (p, n, s).
    """

    x_hat: np.ndarray
    posterior_params: Tensor


def reconstruct(models: Sequence[FittedModel], part: MaskedRows) -> np.ndarray:
    """Returns x_hat of rows under several models, float32 (p, n, d), in the scaler's units; see ``infer``."""
    return infer(models, part).x_hat


def infer(
    models: Sequence[FittedModel], part: MaskedRows, *, effort: float = 1.0, start: Sequence[Tensor] | None = None
) -> Inferred:
    """Fits the posteriors of new rows under several models of one architecture and decodes their means.

    Args:
        models: Models that agree in architecture and in the ``infer`` settings steps, start and prior.
        part: The rows (n, d).
        effort: Share of ``infer.steps`` to take.
        start: Posterior parameters (n, s) to start each model from; by default ``infer.start`` decides.
    """
    return _Inference(models, part.x.shape[1], effort).infer(part, start)


class _Inference:
    def __init__(self, models: Sequence[FittedModel], features: int, effort: float) -> None:
        self.config = models[0].config
        self.steps = math.ceil(effort * self.config.infer.steps)
        self.family: Family = build_family(Architecture.of(self.config.model, features))
        self.weights = torch.stack([model.weights for model in models])  # (p, M)
        self.networks: Networks = self.family.layers(self.weights)
        self.latents = torch.stack([model.latents for model in models])  # (p, m, s)
        self.starts = self.latents[:, sample_rows(self.latents.shape[1], _STARTS)]  # (p, c, s)
        obs_log_var = self.family.obs_log_var(self.networks)
        self.precision = 1.0 if obs_log_var is None else torch.exp(-obs_log_var)  # of the features, (p, 1, d)
        self.device = self.latents.device

        def vector(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)

        self.configs = configs = [model.config for model in models]
        self.kl_weight = vector(
            [c.train.kl_weight if c.infer.kl_weight is None else c.infer.kl_weight for c in configs]
        )
        self.log_var = vector([c.model.log_var for c in configs])
        self.lr = [c.infer.lr for c in configs]
        self.prior = self._train_prior() if self.config.infer.prior == "train" else STANDARD_PRIOR

    def _train_prior(self) -> Prior:
        """Returns a Gaussian with the moments of the train rows' posterior means."""
        means = self.latents[..., : self.family.architecture.latent]
        variance = means.var(dim=1, keepdim=True, correction=0).clamp_(min=1e-6)
        return Prior(means.mean(dim=1, keepdim=True), 1.0 / variance)

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Returns the decoded means of posterior parameters (p, m, s), (p, m, d)."""
        return self.family.decode(self.networks, self.family.posterior(latents, self.log_var).mean)

    @torch.no_grad()
    def infer(self, part: MaskedRows, start: Sequence[Tensor] | None) -> Inferred:
        """See the function ``infer``."""
        x_hat, posterior_params = [], []
        for rows in self._chunks(len(part.x)):
            mask = torch.tensor(part.mask[rows], device=self.device)
            x = torch.tensor(part.x[rows], device=self.device).masked_fill_(~mask, 0.0)
            if self.family.architecture.closed_form:
                params = self._closed_form(x, mask.float())
            elif start is None:
                params = self._fit(self._start(x, mask.float()), x, mask.float())
            else:
                params = self._fit(torch.stack([each[rows] for each in start]).to(self.device), x, mask.float())
            posterior_params.append(params)
            mean = self.family.posterior(params, self.log_var).mean
            # The posterior of a row without observed cells is the prior, wherever it started.
            mean = torch.where(mask.any(1, keepdim=True), mean, self.prior.mean)
            x_hat.append(self.family.decode(self.networks, mean).cpu().numpy())
        return Inferred(np.concatenate(x_hat, axis=1), torch.cat(posterior_params, dim=1))

    def _chunks(self, n: int) -> Iterator[slice]:
        architecture = self.family.architecture
        width = max(self.starts.shape[1], architecture.features, architecture.hidden) * len(self.latents)
        size = max(1, _CHUNK_FLOATS // width)
        return (slice(start, start + size) for start in range(0, n, size))

    def _closed_form(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the posterior means (p, n, k) of rows x (n, d), with 0 where missing, mask (n, d) float."""
        means = []
        for i in range(len(self.latents)):
            decoder, kl_weight = self.family.linear_decoder(self.networks, i), float(self.kl_weight[i])
            prior = (value if isinstance(value, float) else value[i, 0] for value in self.prior)
            means.append(_posterior_means(decoder, x, mask, kl_weight, *prior))
        return torch.stack(means).float()

    def _fit(self, posterior_params: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Fits posterior parameters (p, n, s) in place to rows x (n, d), with 0 where missing, and returns them."""
        generator = derived_generator(self.config.train.seed, Purpose.INFERENCE)
        eps = standard_normal(self.steps, 1, self.family.architecture.latent, generator=generator, device=self.device)
        lr = SCHEDULES["cosine"](np.arange(self.steps)[:, None] / max(1, self.steps)) * self.lr  # (steps, p)
        by_kernel = self.device.type == "cpu" and native.supports_inference(self.config)
        (self._fit_natively if by_kernel else self._fit_stacked)(posterior_params, x, mask, eps, lr)
        return posterior_params

    def _fit_natively(self, posterior_params: Tensor, x: Tensor, mask: Tensor, eps: Tensor, lr: np.ndarray) -> None:
        """Fits one model after the other by the compiled kernel."""
        x_nan = x.masked_fill(mask == 0, torch.nan)
        precision = torch.as_tensor(self.precision).expand(len(posterior_params), 1, x.shape[1])
        for i, (config, weights) in enumerate(zip(self.configs, self.weights, strict=True)):
            mean, prior_precision = (value if isinstance(value, float) else value[i, 0] for value in self.prior)
            native_epoch.fit_rows(
                self.family,
                config,
                weights,
                posterior_params[i],
                x_nan,
                precision=precision[i, 0],
                eps=eps[:, 0],
                kl_weight=float(self.kl_weight[i]),
                prior=Prior(mean, prior_precision),
                lr=np.ascontiguousarray(lr[:, i]),
            )

    def _fit_stacked(self, posterior_params: Tensor, x: Tensor, mask: Tensor, eps: Tensor, lr: np.ndarray) -> None:
        """Fits all models at once in PyTorch."""
        moments, grad = torch.zeros(2, *posterior_params.shape, device=self.device), torch.empty_like(posterior_params)
        optimiser = AdamW(posterior_params, grad, moments)
        decoder, layers = self.family.networks["decoder"], self.networks["decoder"]
        learned, weight = self.family.architecture.posterior == "learned", 2.0 * mask * self.precision
        steps_before = np.broadcast_to(np.arange(len(lr))[:, None], lr.shape)
        steps = optimiser.steps(slice(0, len(posterior_params)), steps_before, lr)
        for step in range(len(lr)):
            posterior = self.family.posterior(posterior_params, self.log_var)
            z, deviation = sample(posterior, eps[step])
            _, grad_z = reconstruction(decoder, layers, z, x, weight)
            grad.copy_(
                posterior_gradients(posterior, grad_z, deviation, self.kl_weight, learned=learned, prior=self.prior)
            )
            next(steps)

    def _start(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns where ``infer.start`` or the encoder starts the posteriors, (p, n, s)."""
        if self.family.amortised:
            return self.family.encode(self.networks, x, mask)[0]
        k = self.family.architecture.latent
        how = self.config.infer.start
        if how == "auto":
            how = "nearest" if self.latents.shape[1] <= _STARTS else "linear"
        match how:
            case "linear":
                mean = self._linear_start(x, mask)
            case "nearest":
                nearest = self._nearest(x, mask)
                return torch.stack([starts[index] for starts, index in zip(self.starts, nearest, strict=True)])
            case "train":
                mean = self.latents[..., :k].mean(dim=1, keepdim=True)
            case "normal":  # the same for all rows, so that rows stay independent
                generator = derived_generator(self.config.train.seed, Purpose.START)
                mean = 0.1 * standard_normal(1, 1, k, generator=generator, device=self.device)
            case _:
                mean = torch.zeros(1, 1, k, device=self.device)
        return self.family.initial_posterior_params(mean.expand(len(self.latents), len(x), k).contiguous())

    def _linear_start(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the posterior means (p, n, k) under linear decoders that are fitted to the decoders at ``starts``."""
        z = self.starts[..., : self.family.architecture.latent].double()  # (p, c, k)
        inputs = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
        decoded = self.decoded(self.starts).double()
        gram = inputs.mT @ inputs
        gram.diagonal(dim1=-2, dim2=-1).add_(1e-6 * z.shape[1])  # latents that nothing depends on stay near 0
        weights = torch.linalg.solve(gram, inputs.mT @ decoded)  # (p, k + 1, d)
        errors = (decoded - inputs @ weights).square().mean((-2, -1)).tolist()
        means = []
        for i, (weight, error) in enumerate(zip(weights, errors, strict=True)):
            decoder, kl_weight = LinearDecoder(weight[:-1], weight[-1], None), float(self.kl_weight[i]) + 2 * error
            precision = 1 / z[i].var(0).clamp(min=1e-6)
            means.append(_posterior_means(decoder, x, mask, kl_weight, z[i].mean(0), precision))
        return torch.stack(means).float()

    def _nearest(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns for each model and row the index in ``starts``, (p, n), of the row with the nearest reconstruction.

        The squared distance is over the row's observed cells, in units of the observation noise.
        """
        decoded = self.decoded(self.starts)
        # Σ mask (x − y)² = const − 2 x·y + mask·y², with x = 0 where missing; likewise with a precision in mask and x
        queries = torch.cat([-2.0 * x * self.precision, mask * self.precision], dim=-1)  # ([p,] n, 2d)
        keys = torch.cat([decoded, decoded.square()], dim=-1).mT  # (p, 2d, c)
        nearest = [_argmin(torch.matmul(rows, keys)) for rows in torch.split(queries, _NEAREST_ROWS, dim=-2)]
        return torch.cat(nearest, dim=-1)


def _posterior_means(
    decoder: LinearDecoder,
    x: Tensor,
    mask: Tensor,
    kl_weight: float,
    prior_mean: Tensor | float,
    prior_precision: Tensor | float,
) -> Tensor:
    """Returns ``posterior_means``; NaN for a model that has diverged, which must not affect the others."""
    try:
        return posterior_means(decoder, x, mask, kl_weight, prior_mean=prior_mean, prior_precision=prior_precision)
    except NotPositiveDefinite:
        return x.new_full((len(x), len(decoder.weight)), torch.nan, dtype=torch.float64)


def _argmin(values: Tensor) -> Tensor:
    """Returns the index of each row's minimum; on a CPU by numpy, which takes a tenth of PyTorch's time."""
    return values.argmin(-1) if values.is_cuda else torch.from_numpy(values.numpy().argmin(-1))
