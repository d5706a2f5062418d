"""Width padding: a narrow model as a wider one that computes the same, so that both can train in one stack.

What is added is zero and stays so. A hidden unit without weights, in or out, gives f(0) = 0: its weights have no
gradient, and no optimiser moves a zero that has none. A latent dimension of mean 0 and log variance 0 is the prior's,
without divergence and without gradient; its noise is left out, so that it is 0 in every draw, and its weights are like
those of a hidden unit. Only a layer norm looks at the whole width; then hidden layers have to be equal.

Activations do not have to be equal: in a stack each is applied to the members that have it (networks.side_by_side).

Encoders and solved decoders are not padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vadtune.models.family import Architecture, Family


def agreement(architecture: Architecture) -> Architecture:
    """Returns what architectures must agree in to be padded to one: with 0 in place of widths that may differ, and no
    activation."""
    if architecture.family != "vad" or architecture.closed_form:
        return architecture
    shared = architecture._replace(latent=0, activation="")
    return shared if architecture.layer_norm else shared._replace(hidden=0)


def widest(architectures: Sequence[Architecture]) -> Architecture:
    """Returns the least architecture that all of these, of one ``agreement``, can be padded to; with the activation of
    the first."""
    latent, hidden = max(a.latent for a in architectures), max(a.hidden for a in architectures)
    return architectures[0]._replace(latent=latent, hidden=hidden)


class Places(NamedTuple):
    """Where the values of a narrow model lie among those of a wider one."""

    chosen: Tensor
    size: int  # of the wider one

    def pad(self, values: Tensor) -> Tensor:
        """Returns values (..., narrow) with zeros between them (..., wide)."""
        padded = values.new_zeros(*values.shape[:-1], self.size)
        padded[..., self.chosen] = values
        return padded

    def unpad(self, values: Tensor) -> Tensor:
        """Returns a copy of the values (..., narrow) that ``pad`` made wide."""
        return values[..., self.chosen]


class Padding(NamedTuple):
    """How a narrow model lies in a wider one."""

    weights: Places  # of the network parameters
    rows: Places  # of the free parameters of a row

    def of(self, name: str) -> Places:
        """Returns the places for a tensor of a training state: weights, rows, or the moments of either."""
        return self.weights if name.startswith("weight") else self.rows

    @classmethod
    def between(cls, narrow: Family, wide: Family, device: torch.device) -> Padding:
        """Returns the padding of models whose architectures are of one ``agreement``; on a device."""
        shapes = narrow.layers(torch.empty(1, narrow.n_parameters))
        places = wide.layers(torch.arange(wide.n_parameters)[None])
        chosen = [
            place[:, : view.shape[1], : view.shape[2]].flatten()
            for name in shapes
            for own, other in zip(shapes[name], places[name], strict=True)
            for view, place in zip(own.tensors().values(), other.tensors().values(), strict=True)
        ]
        means, k = torch.arange(narrow.architecture.latent), wide.architecture.latent
        kinds = range(narrow.row_parameters // len(means))  # means, and log variances where they are learned
        return cls(
            Places(torch.cat(chosen).to(device), wide.n_parameters),
            Places(torch.cat([means + kind * k for kind in kinds]).to(device), wide.row_parameters),
        )
