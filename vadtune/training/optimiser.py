"""Optimisers with one set of hyperparameters per member of a population, and the learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = NDArray[Any]
"""Numbers of each step and member, (t, p)."""

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Optimiser(ABC):
    """An optimiser of a parameter with a population axis.

    Args:
        parameter: (p, ...), contiguous; updated in place.
        grad: Like ``parameter``; the gradient is read from here.
        moments: (2, p, ...): what the optimiser remembers, zeros at first; updated in place.
        decay: Weight decay per member.
    """

    def __init__(self, parameter: Tensor, grad: Tensor, moments: Tensor, decay: Sequence[float] | None = None) -> None:
        self._parameter, self._grad, self._moments = parameter, grad, moments
        self._decay = np.zeros(len(parameter)) if decay is None else np.array(decay, dtype=np.float64)

    @abstractmethod
    def steps(self, members: slice, taken: Table, lr: Table) -> Iterator[None]:
        """Takes one step whenever asked for the next item. What follows from the arguments is computed once, so that a
        step costs the same however many members there are.

        Args:
            members: Which members; contiguous.
            taken: How many steps each of them has taken before each step (t, p).
            lr: The learning rate of each of them at each step (t, p).
        """

    def _columns(self, *tables: Table) -> Tensor:
        """Returns numbers of each step and member (t, p) as a tensor (t, tables, p, 1, ...), brought to the device in
        one go."""
        stacked = torch.from_numpy(np.stack(tables, axis=1)).to(self._parameter.dtype)
        return stacked.view(*stacked.shape, *[1] * (self._parameter.dim() - 1)).to(self._parameter.device)


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1); weight decay is added to the gradient.

    The moments are the running means of the gradient and of its square. On a CPU every member takes PyTorch's fused
    step, one pass over memory; elsewhere all members share a handful of elementwise operations, because there it is
    launches that cost. See Optimiser for the arguments.
    """

    _fused_step: Callable[..., Any] = staticmethod(torch._fused_adam_)
    _decoupled = False

    def __init__(self, parameter: Tensor, grad: Tensor, moments: Tensor, decay: Sequence[float] | None = None) -> None:
        super().__init__(parameter, grad, moments, decay)
        self._fused = parameter.device.type == "cpu"
        self._counts = torch.zeros(len(parameter))
        self._members = [
            ([parameter[i]], [grad[i]], [moments[0, i]], [moments[1, i]], [self._counts[i]])
            for i in range(len(parameter) if self._fused else 0)
        ]

    def steps(self, members: slice, taken: Table, lr: Table) -> Iterator[None]:
        """Takes steps. See Optimiser."""
        return (self._each if self._fused else self._together)(members, taken, lr)

    def _each(self, members: slice, taken: Table, lr: Table) -> Iterator[None]:
        indices = range(*members.indices(len(self._members)))
        for before, rates in zip(taken.tolist(), lr.tolist(), strict=True):
            for i, done, rate in zip(indices, before, rates, strict=True):
                parameter, grad, first, second, count = self._members[i]
                count[0].fill_(done + 1)
                self._fused_step(
                    parameter,
                    grad,
                    first,
                    second,
                    [],
                    count,
                    lr=rate,
                    beta1=_BETA1,
                    beta2=_BETA2,
                    weight_decay=float(self._decay[i]),
                    eps=_EPS,
                    amsgrad=False,
                    maximize=False,
                )
            yield

    def _together(self, members: slice, taken: Table, lr: Table) -> Iterator[None]:
        parameter, grad = self._parameter[members], self._grad[members]
        first, second = self._moments[0, members], self._moments[1, members]
        decay = np.broadcast_to(self._decay[members], lr.shape)
        kept_or_added = 1 - lr * decay if self._decoupled else decay
        columns = self._columns(np.sqrt(1 - _BETA2 ** (taken + 1)), lr / (1 - _BETA1 ** (taken + 1)), kept_or_added)
        for correction, rate, of_parameter in columns:
            slope = grad
            if self._decoupled:
                parameter.mul_(of_parameter)
            else:
                slope = torch.addcmul(grad, parameter, of_parameter)
            first.lerp_(slope, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(slope, slope, value=1 - _BETA2)
            parameter.sub_((first / second.sqrt().div_(correction).add_(_EPS)).mul_(rate))
            yield


class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2): weight decay is decoupled from the gradient and
    scaled by the learning rate."""

    _fused_step = staticmethod(torch._fused_adamw_)
    _decoupled = True


class SGD(Optimiser):
    """Gradient descent; weight decay is added to the gradient. See Optimiser for the other arguments.

    Args:
        momentum: What is kept of the last step's direction, which is the first of the moments.
    """

    def __init__(
        self,
        parameter: Tensor,
        grad: Tensor,
        moments: Tensor,
        decay: Sequence[float] | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(parameter, grad, moments, decay)
        self._momentum = momentum

    def steps(self, members: slice, taken: Table, lr: Table) -> Iterator[None]:
        """Takes steps. See Optimiser."""
        parameter, direction, grad = self._parameter[members], self._moments[0, members], self._grad[members]
        for rate, decay in self._columns(lr, np.broadcast_to(self._decay[members], lr.shape)):
            direction.mul_(self._momentum).add_(grad).addcmul_(parameter, decay)
            parameter.addcmul_(direction, rate, value=-1)
            yield


OPTIMISERS: dict[str, Callable[..., Optimiser]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
"""Name -> the optimiser of the networks."""

# A row is visited once an epoch: what its last gradient was says little about a decoder that has moved on.
ROW_OPTIMISERS: dict[str, Callable[..., Optimiser]] = OPTIMISERS | {"sgd": partial(SGD, momentum=0.0)}
"""Name -> the optimiser of the train rows' posteriors."""

SCHEDULES: dict[str, Callable[[Table], Table]] = {
    "constant": lambda progress: np.ones_like(progress),
    "cosine": lambda progress: 0.5 * (1 + np.cos(np.pi * progress)),
    "plateau": lambda progress: np.ones_like(progress),
}
"""Name -> factors on the learning rates, given shares of the steps already taken (0 to 1). That of ``plateau`` is
each member's own: see Plateau."""


@dataclass
class Plateau:
    """Halves the learning rates of a member whose train loss no longer falls.

    Attributes:
        factor: On the learning rates.
        best: The least loss so far.
        bad: Epochs since it fell by a ten-thousandth or more.
    """

    factor: float = 1.0
    best: float = math.inf
    bad: float = 0.0

    PATIENCE = 10  # epochs without progress that change nothing yet

    def update(self, loss: float) -> None:
        """Takes the loss of an epoch into account."""
        if loss < self.best * (1 - 1e-4):
            self.best, self.bad = loss, 0.0
            return
        self.bad += 1
        if self.bad > self.PATIENCE:
            self.factor, self.bad = self.factor / 2, 0.0

    def to_tensor(self) -> Tensor:
        """Returns the attributes, for a training state."""
        return torch.tensor(astuple(self), dtype=torch.float64)
