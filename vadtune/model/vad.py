"""The Variational Auto-Decoder (Zadeh, Lim, Liang & Morency 2019, arXiv 1903.00840): no encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vadtune.model.family import Architecture, Family


def _principal_components(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Projects each row on the first k principal components, missing cells filled by the column's mean.

    Rows start where they belong, so that training needs far fewer epochs to tell configurations apart. Components are
    scaled to the prior's unit variance; those beyond the rank of the data start as small noise.
    """
    mean = x.sum(0) / mask.sum(0).clamp(min=1.0)
    centred = (x - mean) * mask  # (n, d)
    variance, components = torch.linalg.eigh((centred.mT @ centred / len(x)).double())  # ascending
    rank = min(k, int((variance > 1e-6 * variance[-1].clamp(min=1e-12)).sum()))
    if rank == 0:
        return _normal(x, mask, k, generator)
    components = components[:, -rank:].flip(1)
    # The sign of a component is arbitrary and differs between machines: its largest entry is made positive.
    components = components * components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    z = (centred.double() @ components / variance[-rank:].flip(0).sqrt()).to(x.dtype)
    return torch.cat([z, _normal(x, mask, k - rank, generator)], dim=1)


def _normal(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return torch.randn(len(x), k, generator=generator).mul_(0.1)


def _zeros(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(len(x), k)


LATENT_INITS: dict[str, Callable[[Tensor, Tensor, int, torch.Generator], Tensor]] = {
    "pca": _principal_components,
    "normal": _normal,
    "zeros": _zeros,
}


class VAD(Family):
    """The posterior of every train row is a set of free parameters, trained together with the decoder."""

    amortised = False

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.row_parameters = architecture.statistics

    def initial_rows(self, x: Tensor, mask: Tensor, how: str, generator: torch.Generator) -> Tensor:
        """Returns posteriors whose means are chosen by LATENT_INITS. See Family."""
        return self.initial_statistics(LATENT_INITS[how](x, mask, self.architecture.latent, generator))
