"""Inference: the decoder is frozen, the posterior of new rows is fitted to their observed cells.

That of a linear decoder with learned posteriors is solved; see model/linear.py.

Every row is fitted on its own: the objective is a sum over rows, Adam acts elementwise and the noise of a step is the
same for all rows, so a row's result does not depend on the rows beside it.

Shape comments: p models, n rows, m train rows, d features, k latent dimensions, s posterior parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadtune.config import TrialConfig
from vadtune.core.randomness import Purpose, derived_generator, standard_normal
from vadtune.data import MaskedRows, Scaler
from vadtune.models import Architecture, Family, Networks, build_family
from vadtune.models.linear import NotSolved, posterior_means
from vadtune.models.objective import STANDARD_PRIOR, Prior, draw, posterior_gradients, reconstruction
from vadtune.training import native_epoch as machine_code
from vadtune.training.optimiser import SCHEDULES, AdamW

_NEAR_ROWS = 256  # whose distances to all train rows are in the cache together
_CHUNK_FLOATS = 2**22  # bounds the memory of a chunk's largest intermediate; small enough to stay near the caches


@dataclass(frozen=True)
class FittedModel:
    """A trained model: what is needed to impute new rows.

    Attributes:
        config: Its configuration.
        weights: Network parameters (M,).
        latents: Statistics of the train rows (m, s): where new rows start, and what a train prior is fitted to.
        scaler: From the source's units to the model's; None before it is known.
        feature_names: The columns; empty before they are known.
    """

    config: TrialConfig
    weights: Tensor
    latents: Tensor
    scaler: Scaler | None = None
    feature_names: tuple[str, ...] = ()

    def with_metadata(self, scaler: Scaler, feature_names: Sequence[str]) -> FittedModel:
        """Returns the model with the description of its data."""
        return replace(self, scaler=scaler, feature_names=tuple(feature_names))

    def reconstruct(self, part: MaskedRows) -> np.ndarray:
        """Returns x_hat, float32 (n, d) in the scaler's units: the decoded posterior means of the rows."""
        return np.asarray(reconstruct([self], part)[0])

    def reconstruct_train(self, features: int) -> np.ndarray:
        """Returns the decoded posterior means of the rows it was trained on, float32 (m, d), as training left them."""
        return np.asarray(_Inference([self], features, 1.0).decoded_train_rows()[0].cpu())

    def impute(self, part: MaskedRows) -> np.ndarray:
        """Returns x_imputed, float32 (n, d): observed cells bit for bit as given, missing cells from x_hat."""
        return np.where(part.mask, part.x, self.reconstruct(part))


class Inferred(NamedTuple):
    """What several models say of rows.

    Attributes:
        x_hat: float32 (p, n, d), in the scaler's units: the decoded posterior means.
        posterior_params: Of the posteriors (p, n, s).
    """

    x_hat: np.ndarray
    posterior_params: Tensor


def reconstruct(models: Sequence[FittedModel], part: MaskedRows) -> np.ndarray:
    """Returns x_hat, float32 (p, n, d), in the scaler's units; see ``infer``."""
    return infer(models, part).x_hat


def infer(
    models: Sequence[FittedModel], part: MaskedRows, *, effort: float = 1.0, start: Sequence[Tensor] | None = None
) -> Inferred:
    """Fits the posteriors of new rows under several models of one architecture and decodes their means.

    Args:
        models: They must agree in architecture and in the ``infer`` settings that are not numbers per model
            (steps, start, prior).
        part: Rows with holes (n, d).
        effort: Share of ``infer.steps`` to take.
        start: Statistics (n, s) of each model to start from; without them as ``infer.start`` says.
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
        log_noise = self.family.log_noise(self.networks)
        self.precision = 1.0 if log_noise is None else torch.exp(-log_noise)  # of the features, (p, 1, d)
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
        """A Gaussian with the moments of the train rows' posterior means."""
        means = self.latents[..., : self.family.architecture.latent]
        variance = means.var(dim=1, keepdim=True, correction=0).clamp_(min=1e-6)
        return Prior(means.mean(dim=1, keepdim=True), 1.0 / variance)

    @torch.no_grad()
    def decoded_train_rows(self) -> Tensor:
        """Returns the decoded posterior means of the train rows (p, m, d)."""
        return self.family.decode(self.networks, self.family.posterior(self.latents, self.log_var).mean)

    @torch.no_grad()
    def infer(self, part: MaskedRows, given: Sequence[Tensor] | None) -> Inferred:
        chunks, found = [], []
        for rows in self._chunks(len(part.x)):
            mask = torch.tensor(part.mask[rows], device=self.device)
            x = torch.tensor(part.x[rows], device=self.device).masked_fill_(~mask, 0.0)
            exact = self.family.architecture.closed_form
            if exact:
                posterior_params = self._solve(x, mask.float())
            else:
                of_rows = None if given is None else torch.stack([own[rows] for own in given]).to(self.device)
                posterior_params = self._fit(x, mask.float(), of_rows)
            found.append(posterior_params)
            mean = self.family.posterior(posterior_params, self.log_var).mean
            # A row without any observed cell says nothing of itself: its posterior is the prior, wherever it started.
            mean = torch.where(mask.any(1, keepdim=True), mean, self.prior.mean)
            chunks.append(self.family.decode(self.networks, mean).cpu().numpy())
        return Inferred(np.concatenate(chunks, axis=1), torch.cat(found, dim=1))

    def _chunks(self, n: int) -> Iterator[slice]:
        architecture = self.family.architecture
        width = max(self.latents.shape[1], architecture.features, architecture.hidden) * len(self.latents)
        size = max(1, _CHUNK_FLOATS // width)
        return (slice(start, start + size) for start in range(0, n, size))

    def _solve(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the exact posterior means (p, n, k) of rows x (n, d), with 0 where missing, mask (n, d) float."""
        means = []
        for i in range(len(self.latents)):
            decoder, kl_weight = self.family.linear(self.networks, i), float(self.kl_weight[i])
            mean, precision = (value if isinstance(value, float) else value[i, 0] for value in self.prior)
            try:
                found = posterior_means(decoder, x, mask, kl_weight, prior_mean=mean, prior_precision=precision)
            except NotSolved:  # of a model that diverged, which must not harm the others
                found = x.new_full((len(x), len(decoder.weight)), torch.nan, dtype=torch.float64)
            means.append(found)
        return torch.stack(means).float()

    def _fit(self, x: Tensor, mask: Tensor, given: Tensor | None) -> Tensor:
        """Returns the posterior parameters (p, n, s) of rows x (n, d), with 0 where missing, mask (n, d) float.

        Starts from ``given`` where that is not None.
        """
        posterior_params = self._start(x, mask) if given is None else given
        generator = derived_generator(self.config.train.seed, Purpose.INFERENCE)
        noise = standard_normal(self.steps, 1, self.family.architecture.latent, generator=generator, device=self.device)
        rates = SCHEDULES["cosine"](np.arange(self.steps)[:, None] / max(1, self.steps)) * self.lr  # (steps, p)
        by_machine_code = self.device.type == "cpu" and machine_code.supports_inference(self.config)
        (self._fit_by_machine_code if by_machine_code else self._fit_together)(posterior_params, x, mask, noise, rates)
        return posterior_params

    def _fit_by_machine_code(
        self, posterior_params: Tensor, x: Tensor, mask: Tensor, noise: Tensor, rates: np.ndarray
    ) -> None:
        x_nan = x.masked_fill(mask == 0, torch.nan)
        precision = torch.as_tensor(self.precision).expand(len(posterior_params), 1, x.shape[1])
        for i, (config, weights) in enumerate(zip(self.configs, self.weights, strict=True)):
            machine_code.fit_rows(
                self.family,
                config,
                weights,
                posterior_params[i],
                x_nan,
                precision=precision[i, 0],
                noise=noise[:, 0],
                kl_weight=float(self.kl_weight[i]),
                prior=Prior(*(v if isinstance(v, float) else v[i, 0] for v in self.prior)),
                rates=np.ascontiguousarray(rates[:, i]),
            )

    def _fit_together(
        self, posterior_params: Tensor, x: Tensor, mask: Tensor, noise: Tensor, rates: np.ndarray
    ) -> None:
        moments, grad = torch.zeros(2, *posterior_params.shape, device=self.device), torch.empty_like(posterior_params)
        optimiser = AdamW(posterior_params, grad, moments)
        decoder, layers = self.family.networks["decoder"], self.networks["decoder"]
        workspace = decoder.workspace(len(posterior_params), len(x), posterior_params)
        learned = self.family.architecture.posterior == "learned"
        weight, everyone = 2.0 * mask * self.precision, slice(0, len(posterior_params))
        taken = np.broadcast_to(np.arange(len(rates))[:, None], rates.shape)
        steps = optimiser.steps(everyone, taken, rates)
        for step in range(len(rates)):
            posterior = self.family.posterior(posterior_params, self.log_var)
            z, deviation = draw(posterior, noise[step])
            _, grad_z = reconstruction(decoder, layers, z, x, weight, workspace=workspace)
            grad.copy_(
                posterior_gradients(posterior, grad_z, deviation, self.kl_weight, learned=learned, prior=self.prior)
            )
            next(steps)

    def _start(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.family.amortised:
            return self.family.encode(self.networks, x, mask)[0]
        k = self.family.architecture.latent
        match self.config.infer.start:
            case "nearest":
                nearest = self._nearest(x, mask)
                return torch.stack([latents[index] for latents, index in zip(self.latents, nearest, strict=True)])
            case "train":
                mean = self.latents[..., :k].mean(dim=1, keepdim=True)
            case "normal":  # the same for all rows: none may depend on those beside it
                generator = derived_generator(self.config.train.seed, Purpose.START)
                mean = 0.1 * standard_normal(1, 1, k, generator=generator, device=self.device)
            case _:
                mean = torch.zeros(1, 1, k, device=self.device)
        return self.family.initial_posterior_params(mean.expand(len(self.latents), len(x), k).contiguous())

    def _nearest(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns, per model and row, the train row (p, n) whose reconstruction is nearest on the observed cells, in
        units of the features' noise."""
        decoded = self.decoded_train_rows()
        # Σ mask (x − y)² = const − 2 x·y + mask·y², with x = 0 where missing; likewise with a precision in mask and x
        given = torch.cat([-2.0 * x * self.precision, mask * self.precision], dim=-1)  # ([p,] n, 2d)
        known = torch.cat([decoded, decoded.square()], dim=-1).mT  # (p, 2d, m)
        found = [_argmin(torch.matmul(rows, known)) for rows in torch.split(given, _NEAR_ROWS, dim=-2)]
        return torch.cat(found, dim=-1)


def _argmin(values: Tensor) -> Tensor:
    """Returns the index of the least of each row; on a CPU by numpy, which takes a tenth of the time."""
    return values.argmin(-1) if values.is_cuda else torch.from_numpy(values.numpy().argmin(-1))
