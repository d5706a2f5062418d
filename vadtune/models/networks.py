"""Multilayer perceptrons for a population: p networks of one architecture with stacked weights.

All parameters of a network lie in one flat tensor (p, M) and the layers are views of it, so an optimiser step is a
handful of operations for any number of layers. The backward pass is written out, because automatic differentiation of
such small networks costs as much as the arithmetic.

A hidden layer is a linear map, an optional layer norm, an activation, and optional dropout in training. A skip is a
linear map from the network's input to its output, added to the rest.

Shape comments: p members, b rows, i inputs, o outputs, M parameters of one member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten
_NORM_EPS = 1e-5  # added to the variance, as in PyTorch's layer norm


class Activation(NamedTuple):
    """An elementwise function with its derivative.

    Attributes:
        forward: Computes the values, in place unless ``keeps_input``.
        backward: Multiplies a gradient by the derivative, in place, given the function's output, or its input if
            ``keeps_input``.
        keeps_input: Whether the derivative is computed from the input rather than the output.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    keeps_input: bool = False


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        torch.relu_, lambda grad, out: _aten.threshold_backward.grad_input(grad, out, 0.0, grad_input=grad)
    ),
    "tanh": Activation(torch.tanh_, lambda grad, out: _aten.tanh_backward.grad_input(grad, out, grad_input=grad)),
    "linear": Activation(lambda x: x, lambda grad, out: grad),
    "gelu": Activation(
        torch.nn.functional.gelu, lambda grad, x: _aten.gelu_backward.grad_input(grad, x, grad_input=grad), True
    ),
    "silu": Activation(
        torch.nn.functional.silu, lambda grad, x: _aten.silu_backward.grad_input(grad, x, grad_input=grad), True
    ),
}


class Layer(NamedTuple):
    """Views of a population's flat parameters, or of their gradients.

    ``scale`` and ``shift`` belong to the layer norm; ``skip``, in the last layer only, maps the network's n inputs.
    """

    weight: Tensor  # (p, i, o)
    bias: Tensor  # (p, 1, o)
    scale: Tensor | None = None  # (p, 1, o)
    shift: Tensor | None = None  # (p, 1, o)
    skip: Tensor | None = None  # (p, n, o)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the views that are not None by name, in storage order."""
        return {name: view for name, view in self._asdict().items() if view is not None}


class NormTape(NamedTuple):
    """Values that the backward pass of a layer norm needs."""

    x: Tensor  # (p, b, o), what was normalised
    normalised: Tensor  # (p, b, o)
    mean: Tensor  # (p, b, 1)
    inverse_std: Tensor  # (p, b, 1)


class Step(NamedTuple):
    """Values that the backward pass of one layer needs.

    Attributes:
        x: The layer's input (p, b, i).
        activated: The activation's output, or input if it keeps that, (p, b, o); None in the last layer.
        norm: Values of the layer norm.
        dropout: Factors on the layer's output (p, b, o).
    """

    x: Tensor
    activated: Tensor | None = None
    norm: NormTape | None = None
    dropout: Tensor | None = None


Tape = list[Step]


def matmul(
    a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None, *, bf16: bool = False
) -> Tensor:
    """Returns a @ b + bias of stacked matrices, (p, b, o).

    Args:
        a: (p, b, i).
        b: (p, i, o).
        bias: (p, 1, o); zero without it.
        out: Where the result is written; new memory without it.
        bf16: Whether the matrix product is computed from, and rounded to, bfloat16.
    """
    if bf16:
        rounded = torch.bmm(a.bfloat16(), b.bfloat16())
        out = rounded.to(a.dtype) if out is None else out.copy_(rounded)
        return out if bias is None else out.add_(bias)
    return torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)


@dataclass(frozen=True)
class MLP:
    """The shape of a perceptron: linear layers with an activation between them. Holds no weights.

    Attributes:
        sizes: Widths from input to output; two of them make a linear map.
        activation: Between the layers.
        layer_norm: Whether an affine layer norm precedes every activation (Ba, Kiros & Hinton 2016, arXiv 1607.06450).
        skip: Whether a linear map of the input, without bias, is added to the output, so that the hidden layers need
            not learn the linear part.
        bf16: Whether matrix products are computed in bfloat16; everything else keeps the type of the weights.
    """

    sizes: tuple[int, ...]
    activation: Activation
    layer_norm: bool = False
    skip: bool = False
    bf16: bool = False

    @property
    def n_parameters(self) -> int:
        """Number M of parameters of one member."""
        norms = 2 * sum(self.sizes[1:-1]) if self.layer_norm else 0
        skip = self.sizes[0] * self.sizes[-1] if self.skip else 0
        return sum((i + 1) * o for i, o in pairwise(self.sizes)) + norms + skip

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns initial parameters (M,) of one member: linear maps uniform in ±1/√i, skip 0, norms identity."""
        parts, last = [], len(self.sizes) - 2
        for index, (i, o) in enumerate(pairwise(self.sizes)):
            parts.append((torch.rand((i + 1) * o, generator=generator) * 2 - 1) / math.sqrt(i))
            if self.layer_norm and index < last:
                parts += [torch.ones(o), torch.zeros(o)]
        if self.skip:
            parts.append(torch.zeros(self.sizes[0] * self.sizes[-1]))
        return torch.cat(parts)

    def layers(self, flat: Tensor) -> list[Layer]:
        """Returns the layers as views of ``flat`` (p, M)."""
        p, layers, start, last = flat.shape[0], [], 0, len(self.sizes) - 2

        def view(rows: int, columns: int) -> Tensor:
            nonlocal start
            start += rows * columns
            return flat[:, start - rows * columns : start].view(p, rows, columns)

        for index, (i, o) in enumerate(pairwise(self.sizes)):
            weight, bias = view(i, o), view(1, o)
            norm = (view(1, o), view(1, o)) if self.layer_norm and index < last else ()
            layers.append(Layer(weight, bias, *norm))
        if self.skip:
            layers[-1] = layers[-1]._replace(skip=view(self.sizes[0], self.sizes[-1]))
        return layers

    def forward(self, layers: list[Layer], x: Tensor, dropout: Sequence[Tensor] | None = None) -> tuple[Tensor, Tape]:
        """Returns the network's output (p, b, o) and the tape for ``backward``.

        Args:
            layers: The weights.
            x: (p, b, i).
            dropout: Factors on the output of every hidden layer, (p, b, o) each.
        """
        tape, last, skip = [], len(layers) - 1, layers[-1].skip
        for index, layer in enumerate(layers):
            step = Step(x)
            x = matmul(x, layer.weight, layer.bias, bf16=self.bf16)
            if index < last:
                x, step = self._activate(x, step, layer, dropout[index] if dropout else None)
            tape.append(step)
        if skip is not None:
            x.add_(matmul(tape[0].x, skip, bf16=self.bf16))
        return x, tape

    def _activate(self, x: Tensor, step: Step, layer: Layer, dropout: Tensor | None) -> tuple[Tensor, Step]:
        """Applies layer norm, activation and dropout to a linear map's output (p, b, o), which it may overwrite."""
        activation, norm = self.activation, None
        if layer.scale is not None and layer.shift is not None:
            normalised, mean, inverse_std = torch.native_layer_norm(x, x.shape[-1:], None, None, _NORM_EPS)
            norm = NormTape(x, normalised, mean, inverse_std)
            x = torch.addcmul(layer.shift, normalised, layer.scale)
        out = activation.forward(x)
        activated = x if activation.keeps_input else out
        return out if dropout is None else out * dropout, Step(step.x, activated, norm, dropout)

    def backward(
        self,
        layers: list[Layer],
        tape: Tape,
        grad: Tensor,
        grads_out: list[Layer] | None,
        *,
        grad_input: Tensor | bool = True,
    ) -> Tensor:
        """Backpropagates a gradient from the output to the input.

        Args:
            layers: The weights.
            tape: From ``forward``.
            grad: Gradient with respect to the output (p, b, o).
            grads_out: Where the gradients of the weights are written; None for a frozen network.
            grad_input: Where the gradient with respect to the input is written; True for new memory, False to skip it.

        Returns:
            The gradient with respect to the input (p, b, i), or, if skipped, to the first layer's output.
        """
        grad_output, skip = grad, layers[-1].skip
        if grads_out is not None and grads_out[-1].skip is not None:
            matmul(tape[0].x.mT, grad_output, out=grads_out[-1].skip, bf16=self.bf16)
        for index in reversed(range(len(layers))):
            if grads_out is not None:
                matmul(tape[index].x.mT, grad, out=grads_out[index].weight, bf16=self.bf16)
                torch.sum(grad, dim=1, keepdim=True, out=grads_out[index].bias)
            if index > 0:
                grad = matmul(grad, layers[index].weight.mT, bf16=self.bf16)
                below = grads_out[index - 1] if grads_out is not None else None
                grad = self._activate_backward(grad, tape[index - 1], layers[index - 1], below)
            elif grad_input is not False:
                out = grad_input if isinstance(grad_input, Tensor) else None
                grad = matmul(grad, layers[0].weight.mT, out=out, bf16=self.bf16)
        if skip is not None and grad_input is not False:
            grad.add_(matmul(grad_output, skip.mT, bf16=self.bf16))
        return grad

    def _activate_backward(self, grad: Tensor, step: Step, layer: Layer, grads_out: Layer | None) -> Tensor:
        """Backpropagates a gradient (p, b, o), overwriting it, from the next layer's input to the linear map."""
        if step.dropout is not None:
            grad.mul_(step.dropout)
        assert step.activated is not None
        grad = self.activation.backward(grad, step.activated)
        if step.norm is None or layer.scale is None:
            return grad
        x, normalised, mean, inverse_std = step.norm
        if grads_out is not None:
            torch.sum(grad * normalised, dim=1, keepdim=True, out=grads_out.scale)
            torch.sum(grad, dim=1, keepdim=True, out=grads_out.shift)
        shape, wanted = x.shape[-1:], [True, False, False]
        grads: tuple[Tensor, ...] = _aten.native_layer_norm_backward(
            grad.mul_(layer.scale), x, shape, mean, inverse_std, None, None, wanted
        )
        return grads[0]
