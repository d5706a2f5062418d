"""AdamW with one set of hyperparameters per member of a population, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) over a parameter with a population axis.

    On a CPU every member takes PyTorch's fused step, one pass over memory; elsewhere all members share a handful of
    elementwise operations, because there it is launches that cost.

    Args:
        parameter: (p, ...), contiguous; updated in place.
        grad: Like ``parameter``; the gradient is read from here.
        moments: (2, p, ...): the running means of the gradient and of its square; updated in place.
        decay: Weight decay per member, decoupled from the gradient and scaled by the learning rate.
    """

    def __init__(self, parameter: Tensor, grad: Tensor, moments: Tensor, decay: Sequence[float] | None = None) -> None:
        self._parameter, self._grad, self._moments = parameter, grad, moments
        self._decay = [0.0] * len(parameter) if decay is None else list(decay)
        self._fused = parameter.device.type == "cpu"
        self._counts = torch.zeros(len(parameter))
        self._members = [
            ([parameter[i]], [grad[i]], [moments[0, i]], [moments[1, i]], [self._counts[i]])
            for i in range(len(parameter) if self._fused else 0)
        ]

    def step_(self, members: slice, taken: Sequence[int], lr: Sequence[float]) -> None:
        """Takes one step.

        Args:
            members: Which members; contiguous.
            taken: How many steps each of them has taken before.
            lr: The learning rate of each of them.
        """
        if not self._fused:
            self._step_together(members, taken, lr)
            return
        indices = range(*members.indices(len(self._members)))
        for i, before, rate in zip(indices, taken, lr, strict=True):
            parameter, grad, first, second, count = self._members[i]
            count[0].fill_(before + 1)
            torch._fused_adamw_(
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
        rows = [
            (math.sqrt(1 - _BETA2 ** (before + 1)), rate / (1 - _BETA1 ** (before + 1)), 1 - rate * decay)
            for before, rate, decay in zip(taken, lr, self._decay[members], strict=True)
        ]
        shape = len(rows), *[1] * (parameter.dim() - 1)
        table = torch.tensor(rows, dtype=parameter.dtype).to(parameter.device, non_blocking=True)
        correction, rate, shrink = (column.reshape(shape) for column in table.unbind(1))
        first.lerp_(grad, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        parameter.mul_(shrink).sub_((first / second.sqrt().div_(correction).add_(_EPS)).mul_(rate))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}
"""Name -> factor on the learning rates, given the share of the steps already taken (0 to 1)."""
