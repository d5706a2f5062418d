"""Observation noise with a learned variance for each feature (heteroscedastic).

The variance of feature f, in units of the common variance that kl_weight stands for, is

    v_f = exp(s_f − mean(s)),   s_f = B tanh(a_f / B)

of free parameters a, so the geometric mean of v is 1: noise moves between features while its amount stays with
kl_weight, and losses stay comparable. The constraint also keeps the optimum finite where kl_weight is 0. B bounds the
ratio of two variances by e^(2B), so a feature without error does not dominate.

Shape comments: p members, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vadtune.models.networks import ACTIVATIONS, MLP, Layer

_BOUND = 4.0


@dataclass(frozen=True)
class FeatureNoise(MLP):
    """The parameters a, as the bias of a linear map without inputs: trained, stored and named like any network."""

    @classmethod
    def over(cls, features: int) -> FeatureNoise:
        """Returns the noise network of this many features."""
        return cls((0, features), ACTIVATIONS["linear"])

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns parameters (d,) for one member: equal variances."""
        return torch.zeros(self.n_parameters)


def log_variance(layers: list[Layer]) -> Tensor:
    """Returns log v, (p, 1, d)."""
    bounded = _BOUND * torch.tanh(layers[0].bias / _BOUND)
    return bounded - bounded.mean(-1, keepdim=True)


def parameters_of(obs_log_var: Tensor) -> Tensor:
    """Returns the parameters a of log variances (...,) with mean 0, which are clipped to the bound."""
    return _BOUND * torch.atanh((obs_log_var / _BOUND).clamp(-0.999, 0.999))


def log_variance_backward(layers: list[Layer], grad: Tensor, grads_out: list[Layer]) -> None:
    """Backpropagates a gradient from log v (p, 1, d) to the parameters; writes it to ``grads_out``."""
    slope = 1.0 - torch.tanh(layers[0].bias / _BOUND).square()
    torch.mul(grad - grad.mean(-1, keepdim=True), slope, out=grads_out[0].bias)
