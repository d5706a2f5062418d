"""Inference: the decoder is frozen, the posterior of new rows is fitted to their observed cells.

Every row is fitted on its own: the objective is a sum over rows, Adam acts elementwise and the noise of a step is the
same for all rows, so a row's result does not depend on the rows beside it.

Shape comments: p models, n rows, m train rows, d features, k latent dimensions, s statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vadtune.config import TrialConfig
from vadtune.data import Part, Scaler
from vadtune.model import Architecture, Family, Networks, build_family
from vadtune.model.objective import STANDARD_PRIOR, Prior, objective
from vadtune.optimiser import SCHEDULES, adamw_
from vadtune.randomness import Purpose, derived_generator, standard_normal

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

    def described(self, scaler: Scaler, feature_names: Sequence[str]) -> FittedModel:
        """Returns the model with the description of its data."""
        return replace(self, scaler=scaler, feature_names=tuple(feature_names))

    def reconstruct(self, part: Part) -> np.ndarray:
        """Returns x_hat, float32 (n, d) in the scaler's units: the decoded posterior means of the rows."""
        return np.asarray(reconstruct([self], part)[0])

    def impute(self, part: Part) -> np.ndarray:
        """Returns x_imputed, float32 (n, d): observed cells bit for bit as given, missing cells from x_hat."""
        return np.where(part.mask, part.x, self.reconstruct(part))


def reconstruct(models: Sequence[FittedModel], part: Part) -> np.ndarray:
    """Fits the posteriors of new rows under several models of one architecture and decodes their means.

    Args:
        models: They must agree in architecture and in the ``infer`` settings that are not numbers per model
            (steps, start, prior).
        part: Rows with holes (n, d).

    Returns:
        x_hat, float32 (p, n, d), in the scaler's units.
    """
    return _Inference(models, part.x.shape[1]).reconstruct(part)


class _Inference:
    def __init__(self, models: Sequence[FittedModel], features: int) -> None:
        self.config = models[0].config
        self.family: Family = build_family(Architecture.of(self.config.model, features))
        self.networks: Networks = self.family.layers(torch.stack([model.weights for model in models]))
        self.latents = torch.stack([model.latents for model in models])  # (p, m, s)
        self.device = self.latents.device

        def vector(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)

        configs = [model.config for model in models]
        self.kl_weight = vector(
            [c.train.kl_weight if c.infer.kl_weight is None else c.infer.kl_weight for c in configs]
        )
        self.log_var = vector([c.model.log_var for c in configs])
        self.lr = vector([c.infer.lr for c in configs])
        self.prior = self._train_prior() if self.config.infer.prior == "train" else STANDARD_PRIOR

    def _train_prior(self) -> Prior:
        """A Gaussian with the moments of the train rows' posterior means."""
        means = self.latents[..., : self.family.architecture.latent]
        variance = means.var(dim=1, keepdim=True, correction=0).clamp_(min=1e-6)
        return Prior(means.mean(dim=1, keepdim=True), 1.0 / variance)

    @torch.no_grad()
    def reconstruct(self, part: Part) -> np.ndarray:
        chunks = []
        for rows in self._chunks(len(part.x)):
            mask = torch.tensor(part.mask[rows], device=self.device)
            x = torch.tensor(part.x[rows], device=self.device).masked_fill_(~mask, 0.0)
            statistics = self._fit(x, mask.float())
            mean = self.family.posterior(statistics, self.log_var).mean
            # A row without any observed cell says nothing of itself: its posterior is the prior, wherever it started.
            mean = torch.where(mask.any(1, keepdim=True), mean, self.prior.mean)
            chunks.append(self.family.decode(self.networks, mean).cpu().numpy())
        return np.concatenate(chunks, axis=1)

    def _chunks(self, n: int) -> Iterator[slice]:
        architecture = self.family.architecture
        width = max(self.latents.shape[1], architecture.features, architecture.hidden) * len(self.latents)
        size = max(1, _CHUNK_FLOATS // width)
        return (slice(start, start + size) for start in range(0, n, size))

    def _fit(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the statistics (p, n, s) of rows x (n, d), with 0 where missing, mask (n, d) float."""
        statistics = self._start(x, mask)
        moments = torch.zeros(2, *statistics.shape, device=self.device)
        learned = self.family.architecture.posterior == "learned"
        steps, k = self.config.infer.steps, self.family.architecture.latent
        generator = derived_generator(self.config.train.seed, Purpose.INFERENCE)
        noise = standard_normal(steps, 1, k, generator=generator, device=self.device)
        for step in range(steps):
            _, gradients = objective(
                self.family.networks["decoder"],
                self.networks["decoder"],
                self.family.posterior(statistics, self.log_var),
                x,
                mask,
                noise=noise[step],
                kl_weight=self.kl_weight,
                normaliser=1.0,
                learned=learned,
                prior=self.prior,
            )
            lr = self.lr * SCHEDULES["cosine"](step / steps)
            adamw_(statistics, self.family.join(gradients), moments, step=step + 1, lr=lr)
        return statistics

    def _start(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.family.amortised:
            return self.family.statistics(self.networks, None, x, mask)[0].clone()
        if self.config.infer.start == "nearest":
            nearest = self._nearest(x, mask)
            return torch.stack([latents[index] for latents, index in zip(self.latents, nearest, strict=True)])
        shape = len(self.latents), len(x), self.family.architecture.latent
        return self.family.initial_statistics(torch.zeros(shape, device=self.device))

    def _nearest(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns, per model and row, the train row (p, n) whose reconstruction is nearest on the observed cells."""
        means = self.family.posterior(self.latents, self.log_var).mean
        decoded = self.family.decode(self.networks, means)  # (p, m, d)
        # Σ mask (x − y)² = const − 2 x·y + mask·y², with x = 0 where missing
        cross = torch.matmul(x, decoded.mT)  # (p, n, m)
        return torch.baddbmm(cross, mask.expand(len(decoded), -1, -1), decoded.square().mT, beta=-2.0).argmin(-1)
