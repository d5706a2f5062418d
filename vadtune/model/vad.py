"""The Variational Auto-Decoder (Zadeh, Lim, Liang & Morency 2019, arXiv 1903.00840): no encoder."""

from __future__ import annotations

from torch import Tensor

from vadtune.model.family import Architecture, Family, Networks


class VAD(Family):
    """The posterior of every train row is a set of free parameters, trained together with the decoder."""

    amortised = False

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.row_parameters = architecture.statistics

    def statistics(self, networks: Networks, rows: Tensor | None, x: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """Returns the rows' free parameters themselves. See Family."""
        assert rows is not None
        return rows, None

    def backward(self, networks: Networks, tape: None, grad: Tensor, into: Networks) -> Tensor:
        """Returns the gradient as it is. See Family."""
        return grad
