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

from vadtune import native

Table = NDArray[Any]
"""Numbers of each step and member, (t, p)."""

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Optimiser(ABC):
    """An optimiser of a parameter with a population axis.

    Args:
        parameter: (p, ...), contiguous; updated in place.
        grad: Like ``parameter``; the gradient is read from here.
        moments: (2, p, ...): the optimiser's state, zeros at first; updated in place.
        decay: Weight decay per member.
    """

    def __init__(self, parameter: Tensor, grad: Tensor, moments: Tensor, decay: Sequence[float] | None = None) -> None:
        self._parameter, self._grad, self._moments = parameter, grad, moments
        self._decay = np.zeros(len(parameter)) if decay is None else np.array(decay, dtype=np.float64)

    @abstractmethod
    def steps(self, members: slice, steps_before: Table, lr: Table) -> Iterator[None]:
        """Returns an iterator that takes one step per item. Coefficients are computed once for all steps.

        Args:
            members: Which members; contiguous.
            steps_before: Number of steps that each of them has taken before each step (t, p).
            lr: Learning rate of each of them at each step (t, p).
        """

    def _columns(self, *tables: Table) -> Tensor:
        """Returns numbers of each step and member (t, p) as one tensor (t, tables, p, 1, ...) on the device."""
        stacked = torch.from_numpy(np.stack(tables, axis=1)).to(self._parameter.dtype)
        return stacked.view(*stacked.shape, *[1] * (self._parameter.dim() - 1)).to(self._parameter.device)


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1); weight decay is added to the gradient.

    The moments are the running means of the gradient and of its square. On a CPU a compiled kernel takes the step in
    one pass over memory; elsewhere all members share a few elementwise operations. See Optimiser for the arguments.
    """

    _decoupled = False

    def steps(self, members: slice, steps_before: Table, lr: Table) -> Iterator[None]:
        """Takes steps. See Optimiser."""
        decay = np.broadcast_to(self._decay[members], lr.shape)
        keep, l2 = (1 - lr * decay, np.zeros_like(lr)) if self._decoupled else (np.ones_like(lr), decay)
        t = steps_before + 1
        coefficients = self._columns(lr / (1 - _BETA1**t), (1 - _BETA2**t) ** -0.5, keep, l2)  # (t, 4, p, 1, ...)
        tensors = self._parameter[members], self._grad[members], self._moments[0, members], self._moments[1, members]
        by_kernel = self._parameter.is_cpu and native.is_available()
        return (self._kernel_steps if by_kernel else self._elementwise_steps)(coefficients, *tensors)

    def _kernel_steps(self, coefficients: Tensor, *tensors: Tensor) -> Iterator[None]:
        from vadtune.native.decoder_kernels import adam_step

        p = coefficients.shape[2]
        arrays = [tensor.view(p, -1).numpy() for tensor in tensors]
        for of_step in coefficients.view(-1, 4, p).numpy():
            adam_step(*arrays, of_step)
            yield

    def _elementwise_steps(
        self, coefficients: Tensor, parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor
    ) -> Iterator[None]:
        for lr, correction, keep, l2 in coefficients:
            slope = grad
            if self._decoupled:
                parameter.mul_(keep)
            else:
                slope = torch.addcmul(grad, parameter, l2)
            first.lerp_(slope, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(slope, slope, value=1 - _BETA2)
            parameter.sub_((first / second.sqrt().mul_(correction).add_(_EPS)).mul_(lr))
            yield


class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2): decoupled weight decay."""

    _decoupled = True


class SGD(Optimiser):
    """Gradient descent; weight decay is added to the gradient. See Optimiser for the other arguments.

    Args:
        momentum: Factor on the last step's direction, which is the first of the moments.
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

    def steps(self, members: slice, steps_before: Table, lr: Table) -> Iterator[None]:
        """Takes steps. See Optimiser."""
        parameter, direction, grad = self._parameter[members], self._moments[0, members], self._grad[members]
        for rate, decay in self._columns(lr, np.broadcast_to(self._decay[members], lr.shape)):
            direction.mul_(self._momentum).add_(grad).addcmul_(parameter, decay)
            parameter.addcmul_(direction, rate, value=-1)
            yield


OPTIMISERS: dict[str, Callable[..., Optimiser]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
"""Name -> the optimiser of the networks."""

# A row is visited once an epoch; the decoder has changed since its last gradient, so momentum would not help.
ROW_OPTIMISERS: dict[str, Callable[..., Optimiser]] = OPTIMISERS | {"sgd": partial(SGD, momentum=0.0)}
"""Name -> the optimiser of the train rows' posteriors."""

SCHEDULES: dict[str, Callable[[Table], Table]] = {
    "constant": lambda progress: np.ones_like(progress),
    "cosine": lambda progress: 0.5 * (1 + np.cos(np.pi * progress)),
    "plateau": lambda progress: np.ones_like(progress),
}
"""Name -> factors on the learning rates, given shares of the steps already taken (0 to 1); for ``plateau`` see Plateau,
which is a factor of each member."""


@dataclass
class Plateau:
    """Halves the learning rates of a member whose train loss has stopped falling.

    Attributes:
        factor: On the learning rates.
        best: The lowest loss so far.
        bad: Epochs since it fell by a ten-thousandth or more.
    """

    factor: float = 1.0
    best: float = math.inf
    bad: float = 0.0

    PATIENCE = 10  # epochs without progress before the factor is halved

    def update(self, loss: float) -> None:
        """Updates the factor with the loss of an epoch."""
        if loss < self.best * (1 - 1e-4):
            self.best, self.bad = loss, 0.0
            return
        self.bad += 1
        if self.bad > self.PATIENCE:
            self.factor, self.bad = self.factor / 2, 0.0

    def to_tensor(self) -> Tensor:
        """Returns the attributes, for a training state."""
        return torch.tensor(astuple(self), dtype=torch.float64)
