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
    """An elementwise function, and the product of a gradient with its derivative given the function's *output*; both
    in place."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        torch.relu_, lambda grad, out: _aten.threshold_backward.grad_input(grad, out, 0.0, grad_input=grad)
    ),
    "tanh": Activation(torch.tanh_, lambda grad, out: _aten.tanh_backward.grad_input(grad, out, grad_input=grad)),
}


class Layer(NamedTuple):
    """Views into a population's flat parameters (or their gradients)."""

    weight: Tensor  # (p, i, o)
    bias: Tensor  # (p, 1, o)


class Workspace(NamedTuple):
    """Memory that forward and backward passes of one batch size write to, again and again.

    Fresh memory for every batch would cost as much as the arithmetic: the system hands out large pieces page by page.
    """

    outputs: list[Tensor]  # of every layer, (p, b, o)
    gradients: list[Tensor]  # with respect to every layer's input, (p, b, i)


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

    def workspace(self, p: int, b: int, like: Tensor) -> Workspace:
        """Returns memory for p members and batches of b rows, of the type and on the device of ``like``."""
        return Workspace(
            [like.new_empty(p, b, o) for o in self.sizes[1:]], [like.new_empty(p, b, i) for i in self.sizes[:-1]]
        )

    def forward(self, layers: list[Layer], x: Tensor, workspace: Workspace | None = None) -> list[Tensor]:
        """Returns the input and every layer's output; the last is the network's (p, b, o).

        Args:
            layers: The weights.
            x: (p, b, i).
            workspace: Where the outputs are written; new memory without it.
        """
        outputs, last = [x], len(layers) - 1
        for index, layer in enumerate(layers):
            out = workspace.outputs[index] if workspace else None
            x = torch.baddbmm(layer.bias, x, layer.weight, out=out)
            outputs.append(x if index == last else ACTIVATIONS[self.activation].forward(x))
        return outputs

    def backward(
        self,
        layers: list[Layer],
        outputs: list[Tensor],
        grad: Tensor,
        into: list[Layer] | None,
        workspace: Workspace | None = None,
        *,
        to_input: Tensor | bool = True,
    ) -> Tensor:
        """Carries a gradient from the output back to the input.

        Args:
            layers: The weights.
            outputs: What ``forward`` returned.
            grad: (p, b, o), the gradient with respect to the last output.
            into: Where the gradients of the weights are written; None when the network is frozen.
            workspace: Where the gradients of the layers' inputs are written; new memory without it.
            to_input: Whether the gradient with respect to the input is wanted, or where it is to be written.

        Returns:
            The gradient with respect to the input (p, b, i), or, when not wanted, to the first layer's output.
        """
        for index in reversed(range(len(layers))):
            if into is not None:
                torch.bmm(outputs[index].mT, grad, out=into[index].weight)
                torch.sum(grad, dim=1, keepdim=True, out=into[index].bias)
            if index > 0:
                out = workspace.gradients[index] if workspace else None
                grad = torch.bmm(grad, layers[index].weight.mT, out=out)
                grad = ACTIVATIONS[self.activation].backward(grad, outputs[index])
            elif isinstance(to_input, Tensor):
                grad = torch.bmm(grad, layers[0].weight.mT, out=to_input)
            elif to_input:
                grad = torch.bmm(grad, layers[0].weight.mT)
        return grad
