"""Optimisers with one set of hyperparameters per member of a population, and the learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

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
        self._decay = [0.0] * len(parameter) if decay is None else list(decay)

    @abstractmethod
    def step_(self, members: slice, taken: Sequence[int], lr: Sequence[float]) -> None:
        """Takes one step.

        Args:
            members: Which members; contiguous.
            taken: How many steps each of them has taken before.
            lr: The learning rate of each of them.
        """

    def _columns(self, rows: list[tuple[float, ...]]) -> list[Tensor]:
        """Returns numbers, a row for every member, as tensors (p, 1, ...), one for every column."""
        table = torch.tensor(rows, dtype=self._parameter.dtype).to(self._parameter.device, non_blocking=True)
        shape = len(rows), *[1] * (self._parameter.dim() - 1)
        return [column.reshape(shape) for column in table.unbind(1)]


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

    def step_(self, members: slice, taken: Sequence[int], lr: Sequence[float]) -> None:
        """Takes one step. See Optimiser."""
        if not self._fused:
            self._step_together(members, taken, lr)
            return
        indices = range(*members.indices(len(self._members)))
        for i, before, rate in zip(indices, taken, lr, strict=True):
            parameter, grad, first, second, count = self._members[i]
            count[0].fill_(before + 1)
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
                weight_decay=self._decay[i],
                eps=_EPS,
                amsgrad=False,
                maximize=False,
            )

    def _step_together(self, members: slice, taken: Sequence[int], lr: Sequence[float]) -> None:
        parameter, grad = self._parameter[members], self._grad[members]
        first, second = self._moments[0, members], self._moments[1, members]
        correction, rate, decay = self._columns(
            [
                (math.sqrt(1 - _BETA2 ** (before + 1)), rate / (1 - _BETA1 ** (before + 1)), self._shrink(rate, decay))
                for before, rate, decay in zip(taken, lr, self._decay[members], strict=True)
            ]
        )
        if self._decoupled:
            parameter.mul_(decay)
        else:
            grad = torch.addcmul(grad, parameter, decay)
        first.lerp_(grad, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        parameter.sub_((first / second.sqrt().div_(correction).add_(_EPS)).mul_(rate))

    def _shrink(self, lr: float, decay: float) -> float:
        return 1 - lr * decay if self._decoupled else decay


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

    def step_(self, members: slice, taken: Sequence[int], lr: Sequence[float]) -> None:
        """Takes one step. See Optimiser."""
        parameter, direction = self._parameter[members], self._moments[0, members]
        rate, decay = self._columns(list(zip(lr, self._decay[members], strict=True)))
        direction.mul_(self._momentum).add_(self._grad[members]).addcmul_(parameter, decay)
        parameter.addcmul_(direction, rate, value=-1)


OPTIMISERS: dict[str, Callable[..., Optimiser]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
"""Name -> the optimiser of the networks."""

# A row is visited once an epoch: what its last gradient was says little about a decoder that has moved on.
ROW_OPTIMISERS: dict[str, Callable[..., Optimiser]] = OPTIMISERS | {"sgd": partial(SGD, momentum=0.0)}
"""Name -> the optimiser of the train rows' posteriors."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "plateau": lambda progress: 1.0,
}
"""Name -> factor on the learning rates, given the share of the steps already taken (0 to 1). That of ``plateau`` is
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
