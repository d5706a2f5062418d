"""The Variational Auto-Decoder (Zadeh, Lim, Liang & Morency 2019, arXiv 1903.00840): no encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vadtune.models.family import Architecture, Family

_FILL_ROUNDS = 5  # of pca_iterated
_BLOCK_ROWS = 2048  # rows that are copied at once


_Blocks = Callable[[], Iterable[Tensor]]
"""Yields centred rows without missing cells, block after block (b, d)."""


def _principal_components(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Returns each row's first k principal components (n, k), missing cells filled by the feature's mean.

    With this start, training ranks configurations after far fewer epochs. Components are scaled to the prior's unit
    variance; those beyond the rank of the data start as small noise.
    """
    return _scores(_centred(x, mask), k, generator)


def _iterated_principal_components(x: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Returns ``_principal_components`` with missing cells filled from the components, for a few rounds.

    This is EM for PCA on incomplete data (Ilin & Raiko 2010, JMLR 11, section 3.1), stopped early. With as many
    components as features the filling has no effect.
    """
    centred = torch.empty_like(x)  # (n, d)
    for block, rows in zip(torch.split(centred, _BLOCK_ROWS), _centred(x, mask)(), strict=True):
        block.copy_(rows)

    def blocks() -> Iterable[Tensor]:
        return torch.split(centred, _BLOCK_ROWS)

    for _ in range(_FILL_ROUNDS):
        components, _ = _components(blocks, k)
        for rows, observed in zip(blocks(), torch.split(mask, _BLOCK_ROWS), strict=True):
            filled = (rows.double() @ components @ components.mT).to(x.dtype)
            rows.copy_(torch.where(observed, rows, filled))
        centred -= centred.mean(0)
    return _scores(blocks, k, generator)


def _centred(x: Tensor, mask: Tensor) -> _Blocks:
    """Returns the rows less the features' means, 0 in missing cells."""
    pairs = list(zip(torch.split(x, _BLOCK_ROWS), torch.split(mask, _BLOCK_ROWS), strict=True))
    total = sum((torch.where(observed, rows, 0.0).sum(0) for rows, observed in pairs), x.new_zeros(x.shape[1]))
    count = sum((observed.sum(0) for _, observed in pairs), mask.new_zeros(x.shape[1], dtype=torch.int64))
    mean = total / count.clamp(min=1.0)
    return lambda: (torch.where(observed, rows - mean, 0.0) for rows, observed in pairs)


def _scores(blocks: _Blocks, k: int, generator: torch.Generator) -> Tensor:
    """Returns the projections (n, k) of complete, centred rows (n, d), scaled to unit variance."""
    components, deviation = _components(blocks, k)
    z = torch.cat([(rows.double() @ components / deviation).to(rows.dtype) for rows in blocks()])
    return torch.cat([z, _normal(z, z, k - components.shape[1], generator)], dim=1)


def _components(blocks: _Blocks, k: int) -> tuple[Tensor, Tensor]:
    """Returns at most k principal components (d, rank), and the standard deviation of the rows along each (rank,)."""
    gram, n = torch.zeros(()), 0
    for rows in blocks():
        gram, n = gram + rows.mT @ rows, n + len(rows)
    variance, components = torch.linalg.eigh((gram / n).double())  # ascending
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
