"""Multilayer perceptrons for a population: P networks of one architecture, their weights stacked.

Every parameter of a network lies in one flat tensor (P, M), of which the layers are views, so that an optimiser step is
a handful of operations however many layers there are. The backward pass is written out: these networks are so small
that automatic differentiation costs as much as the arithmetic.

Shape comments: p members, b rows, i inputs, o outputs, M parameters of one member.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten


class Activation(NamedTuple):
    """An elementwise function and the product of a gradient with its derivative, given the function's *output*."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(torch.relu_, lambda grad, out: _aten.threshold_backward(grad, out, 0.0)),
    "tanh": Activation(torch.tanh_, lambda grad, out: _aten.tanh_backward(grad, out)),
}


class Layer(NamedTuple):
    """Views into a population's flat parameters (or their gradients)."""

    weight: Tensor  # (p, i, o)
    bias: Tensor  # (p, 1, o)


@dataclass(frozen=True)
class MLP:
    """The shape of a perceptron: linear layers with an activation between them. Holds no weights.

    Attributes:
        sizes: Widths from input to output; two of them make a linear map.
        activation: A name of ACTIVATIONS.
    """

    sizes: tuple[int, ...]
    activation: str

    @property
    def n_parameters(self) -> int:
        """Number M of parameters of one member."""
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns parameters (M,) for one member: uniform in ±1/√inputs, as PyTorch's own linear layers start."""
        parts = []
        for i, o in pairwise(self.sizes):
            parts.append((torch.rand((i + 1) * o, generator=generator) * 2 - 1) / math.sqrt(i))
        return torch.cat(parts)

    def layers(self, flat: Tensor) -> list[Layer]:
        """Returns the layers as views of ``flat`` (p, M)."""
        p, layers, start = flat.shape[0], [], 0
        for i, o in pairwise(self.sizes):
            middle, end = start + i * o, start + (i + 1) * o
            layers.append(Layer(flat[:, start:middle].view(p, i, o), flat[:, middle:end].view(p, 1, o)))
            start = end
        return layers

    def forward(self, layers: list[Layer], x: Tensor) -> list[Tensor]:
        """Returns the input and every layer's output; the last is the network's (p, b, o).

        Args:
            layers: The weights.
            x: (p, b, i).
        """
        outputs = [x]
        for layer in layers[:-1]:
            x = ACTIVATIONS[self.activation].forward(torch.baddbmm(layer.bias, x, layer.weight))
            outputs.append(x)
        outputs.append(torch.baddbmm(layers[-1].bias, x, layers[-1].weight))
        return outputs

    def backward(
        self,
        layers: list[Layer],
        outputs: list[Tensor],
        grad: Tensor,
        into: list[Layer] | None,
        *,
        to_input: bool = True,
    ) -> Tensor:
        """Carries a gradient from the output back to the input.

        Args:
            layers: The weights.
            outputs: What ``forward`` returned.
            grad: (p, b, o), the gradient with respect to the last output.
            into: Where the gradients of the weights are written; None when the network is frozen.
            to_input: Whether the gradient with respect to the input is wanted.

        Returns:
            The gradient with respect to the input (p, b, i), or, when not wanted, to the first layer's output.
        """
        for index in reversed(range(len(layers))):
            if into is not None:
                torch.bmm(outputs[index].mT, grad, out=into[index].weight)
                torch.sum(grad, dim=1, keepdim=True, out=into[index].bias)
            if index > 0 or to_input:
                grad = torch.bmm(grad, layers[index].weight.mT)
            if index > 0:
                grad = ACTIVATIONS[self.activation].backward(grad, outputs[index])
        return grad
