"""The Variational Auto-Decoder (Zadeh, Lim, Liang & Morency 2019, arXiv 1903.00840): no encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vadtune.models.family import Architecture, Family

_FILL_ROUNDS = 5  # of pca_iterated
_BLOCK_ROWS = 2048  # rows that are converted to float64 at once


def _principal_components(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Returns each row's first k principal components (n, k), missing cells filled by the feature's mean.

    With this start, training ranks configurations after far fewer epochs. Components are scaled to the prior's unit
    variance; those beyond the rank of the data start as small noise.
    """
    mean = x.sum(0) / mask.sum(0).clamp(min=1.0)
    return _scores((x - mean) * mask, k, generator)


def _iterated_principal_components(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Returns ``_principal_components`` with missing cells filled from the components, for a few rounds.

    This is EM for PCA on incomplete data (Ilin & Raiko 2010, JMLR 11, section 3.1), stopped early. With as many
    components as features the filling has no effect.
    """
    mean = x.sum(0) / mask.sum(0).clamp(min=1.0)
    centred = (x - mean) * mask  # (n, d)
    for _ in range(_FILL_ROUNDS):
        components, _ = _components(centred, k)
        for rows, observed in zip(torch.split(centred, _BLOCK_ROWS), torch.split(mask, _BLOCK_ROWS), strict=True):
            filled = (rows.double() @ components @ components.mT).to(x.dtype)
            rows.copy_(torch.where(observed > 0, rows, filled))
        centred -= centred.mean(0)
    return _scores(centred, k, generator)


def _scores(centred: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Returns the projections (n, k) of complete, centred rows (n, d), scaled to unit variance."""
    components, deviation = _components(centred, k)
    rank = components.shape[1]
    blocks = [rows.double() @ components / deviation for rows in torch.split(centred, _BLOCK_ROWS)]
    z = torch.cat(blocks).to(centred.dtype)
    return torch.cat([z, _normal(centred, centred, k - rank, generator)], dim=1)


def _components(centred: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns at most k principal components (d, rank), and the standard deviation of the rows along each (rank,)."""
    variance, components = torch.linalg.eigh((centred.mT @ centred / len(centred)).double())  # ascending
    rank = min(k, int((variance > 1e-6 * variance[-1].clamp(min=1e-12)).sum()))
    first = len(variance) - rank
    components = components[:, first:].flip(1)
    # The sign of a component is arbitrary and differs between machines: make its largest entry positive.
    components = components * components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    return components, variance[first:].flip(0).sqrt()


def _normal(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return torch.randn(len(x), k, generator=generator).mul_(0.1)


def _zeros(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(len(x), k)


LATENT_INITS: dict[str, Callable[[Tensor, Tensor, int, torch.Generator], Tensor]] = {
    "pca": _principal_components,
    "pca_iterated": _iterated_principal_components,
    "normal": _normal,
    "zeros": _zeros,
}


class VAD(Family):
    """VAD: the posterior of every train row is a set of free parameters, trained together with the decoder."""

    amortised = False

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.row_parameters = architecture.posterior_params

    def initial_rows(self, x: Tensor, mask: Tensor, how: str, generator: torch.Generator) -> Tensor:
        """Returns initial posteriors with the means of LATENT_INITS[how]. See Family."""
        return self.initial_posterior_params(LATENT_INITS[how](x, mask, self.architecture.latent, generator))
