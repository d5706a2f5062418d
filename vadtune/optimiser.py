"""AdamW with one set of hyperparameters per member of a population, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def adamw_(
    parameter: Tensor, grad: Tensor, moments: Tensor, *, step: int, lr: Tensor | float, decay: Tensor | float = 0.0
) -> None:
    """Takes one AdamW step in place (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args:
        parameter: (p, ...).
        grad: Like ``parameter``.
        moments: (2, p, ...): the running means of the gradient and of its square.
        step: Number of this step, from 1.
        lr: Broadcast to ``parameter``.
        decay: Weight decay, decoupled from the gradient and scaled by ``lr``; broadcast to ``parameter``.
    """
    first, second = moments[0], moments[1]
    first.lerp_(grad, 1 - _BETA1)
    second.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
    scale = second.sqrt().div_(math.sqrt(1 - _BETA2**step)).add_(_EPS)
    if isinstance(decay, Tensor):
        parameter.mul_(1 - lr * decay)
    parameter.sub_((first / scale).mul_(lr / (1 - _BETA1**step)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}
"""Name -> factor on the learning rates, given the share of the steps already taken (0 to 1)."""
