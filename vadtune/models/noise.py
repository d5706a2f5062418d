"""Observation noise: of one variance for all features, or of a learned one for each (heteroscedastic).

The learned variances, in units of the one that kl_weight stands for, are

    v_f = exp(s_f − mean(s)),   s_f = B tanh(a_f / B)

of free parameters a, so that their geometric mean is 1: noise moves between features, its amount stays with kl_weight,
and losses stay comparable. It also keeps the maximum finite where kl_weight is 0: to raise one variance is to lower
the others. B keeps a feature without error from taking everything: two variances differ by e^(2B) at most.

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
    """The parameters a as the bias of a linear map without inputs: trained, stored and named like any network."""

    @classmethod
    def over(cls, features: int) -> FeatureNoise:
        """Returns noise of a variance for each of so many features."""
        return cls((0, features), ACTIVATIONS["linear"])

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns parameters (d,) for one member: equal variances."""
        return torch.zeros(self.n_parameters)


def log_variance(layers: list[Layer]) -> Tensor:
    """Returns log v, (p, 1, d)."""
    bounded = _BOUND * torch.tanh(layers[0].bias / _BOUND)
    return bounded - bounded.mean(-1, keepdim=True)


def parameters_of(log_noise: Tensor) -> Tensor:
    """Returns the parameters a of log variances (...,) of mean 0; those out of bounds are brought to them."""
    return _BOUND * torch.atanh((log_noise / _BOUND).clamp(-0.999, 0.999))


def log_variance_backward(layers: list[Layer], grad: Tensor, into: list[Layer]) -> None:
    """Carries a gradient from log v (p, 1, d) back to the parameters, written to ``into``."""
    slope = 1.0 - torch.tanh(layers[0].bias / _BOUND).square()
    torch.mul(grad - grad.mean(-1, keepdim=True), slope, out=into[0].bias)
