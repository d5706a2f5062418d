"""Width padding: embeds a narrow model in a wider one that computes the same, so that both can train in one stack.

The padding is zero and stays zero. A hidden unit whose weights are all 0 outputs f(0) = 0, so its weights have no
gradient, and no optimiser moves a zero without one. A latent dimension with mean 0 and log variance 0 equals the prior:
no divergence and no gradient; its draws are masked to 0. A layer norm depends on the whole width, so hidden widths must
be equal there. Activations may differ: each is applied to the members that have it (networks.per_member_activation).

Encoders and decoders in closed form are not padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vadtune.models.family import Architecture, Family


def padding_key(architecture: Architecture) -> Architecture:
    """Returns the architecture with 0 for widths, and "" for the activation, where padding allows them to differ."""
    if architecture.family != "vad" or architecture.closed_form:
        return architecture
    shared = architecture._replace(latent=0, activation="")
    return shared if architecture.layer_norm else shared._replace(hidden=0)


def widest(architectures: Sequence[Architecture]) -> Architecture:
    """Returns the smallest architecture that all of these can be padded to, with the activation of the first."""
    latent, hidden = max(a.latent for a in architectures), max(a.hidden for a in architectures)
    return architectures[0]._replace(latent=latent, hidden=hidden)


class IndexMap(NamedTuple):
    """Positions of a narrow model's values among those of a wider one."""

    positions: Tensor
    size: int  # of the wider one

    def pad(self, values: Tensor) -> Tensor:
        """Returns values (..., narrow) with zeros in between (..., wide)."""
        padded = values.new_zeros(*values.shape[:-1], self.size)
        padded[..., self.positions] = values
        return padded

    def unpad(self, values: Tensor) -> Tensor:
        """Returns a copy of the narrow values (..., narrow) among padded ones (..., wide)."""
        return values[..., self.positions]


class Padding(NamedTuple):
    """Positions of a narrow model's parameters in a wider one."""

    weights: IndexMap  # of the network parameters
    rows: IndexMap  # of the free parameters of a row

    def of(self, name: str) -> IndexMap:
        """Returns the index map for a tensor of a training state: weights, rows, or the moments of either."""
        return self.weights if name.startswith("weight") else self.rows

    @classmethod
    def between(cls, narrow: Family, wide: Family, device: torch.device) -> Padding:
        """Returns the padding between models whose architectures have one ``padding_key``, on a device."""
        narrow_layers = narrow.layers(torch.empty(1, narrow.n_parameters))
        positions = wide.layers(torch.arange(wide.n_parameters)[None])
        index = [
            position[:, : view.shape[1], : view.shape[2]].flatten()
            for name in narrow_layers
            for layer, wide_layer in zip(narrow_layers[name], positions[name], strict=True)
            for view, position in zip(layer.tensors().values(), wide_layer.tensors().values(), strict=True)
        ]
        means, k = torch.arange(narrow.architecture.latent), wide.architecture.latent
        parts = range(narrow.row_parameters // len(means))  # means, and log variances where they are learned
        return cls(
            IndexMap(torch.cat(index).to(device), wide.n_parameters),
            IndexMap(torch.cat([means + part * k for part in parts]).to(device), wide.row_parameters),
        )
