"""Multilayer perceptrons for a population: P networks of one architecture, their weights stacked.

Every parameter of a network lies in one flat tensor (P, M), of which the layers are views, so that an optimiser step is
a handful of operations however many layers there are. The backward pass is written out: these networks are so small
that automatic differentiation costs as much as the arithmetic.

A hidden layer is: linear map, layer norm if asked for, activation, dropout in training if asked for. A skip is a linear
map beside all of them, from the input to the output.

Shape comments: p members, b rows, i inputs, o outputs, M parameters of one member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vadtune.models.products import product

_aten = torch.ops.aten
_NORM_EPS = 1e-5  # added to the variance, as in PyTorch's own layer norm


class Activation(NamedTuple):
    """An elementwise function with its derivative.

    Attributes:
        forward: Returns the values, 0 for 0, which padding.py builds on; in place where ``keeps_input`` is False.
        backward: The product, in place, of a gradient with the derivative, given the function's output, or its input
            where ``keeps_input`` is True.
        keeps_input: Whether the derivative needs the input, which then has to outlive the forward pass.
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


def side_by_side(names: Sequence[str]) -> Activation:
    """Returns the activation of members that have one each: every run of equal names is applied to its slice.

    Args:
        names: Of ACTIVATIONS, one for each member.
    """
    parts, start = [], 0
    for name, run in groupby(names):
        end = start + len(list(run))
        parts.append((slice(start, end), ACTIVATIONS[name]))
        start = end
    if len(parts) == 1:
        return parts[0][1]
    keeps_input = any(part.keeps_input for _, part in parts)

    def forward(x: Tensor) -> Tensor:
        values = [part.forward(x[members]) for members, part in parts]
        # Where a part works in place, x holds afterwards what its derivative is taken from: its output.
        return torch.cat(values) if keeps_input else x

    def backward(grad: Tensor, activated: Tensor) -> Tensor:
        for members, part in parts:
            part.backward(grad[members], activated[members])
        return grad

    return Activation(forward, backward, keeps_input)


class Layer(NamedTuple):
    """Views into a population's flat parameters (or their gradients).

    ``scale`` and ``shift`` are a layer norm's; ``skip``, of the last layer, maps the network's input n.
    """

    weight: Tensor  # (p, i, o)
    bias: Tensor  # (p, 1, o)
    scale: Tensor | None = None  # (p, 1, o)
    shift: Tensor | None = None  # (p, 1, o)
    skip: Tensor | None = None  # (p, n, o)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the views there are by name, in the order they are stored."""
        return {name: view for name, view in self._asdict().items() if view is not None}


class NormTape(NamedTuple):
    """What the backward pass of a layer norm needs."""

    x: Tensor  # (p, b, o), what was normalised
    normalised: Tensor  # (p, b, o)
    mean: Tensor  # (p, b, 1)
    inverse_std: Tensor  # (p, b, 1)


class Step(NamedTuple):
    """What the backward pass of one layer needs.

    Attributes:
        x: The layer's input (p, b, i).
        activated: What the activation's derivative is taken from (p, b, o); None behind the last layer.
        norm: Of a layer norm.
        dropout: Factors on the layer's output (p, b, o).
    """

    x: Tensor
    activated: Tensor | None = None
    norm: NormTape | None = None
    dropout: Tensor | None = None


Tape = list[Step]


class Workspace(NamedTuple):
    """Memory that forward and backward passes of one batch size write to, again and again.

    Fresh memory for every batch would cost as much as the arithmetic: the system hands out large pieces page by page.
    """

    outputs: list[Tensor]  # of every layer's linear map, (p, b, o)
    gradients: list[Tensor]  # with respect to every layer's input, (p, b, i)


@dataclass(frozen=True)
class MLP:
    """The shape of a perceptron: linear layers with an activation between them. Holds no weights.

    Attributes:
        sizes: Widths from input to output; two of them make a linear map.
        activation: Between the layers.
        layer_norm: Whether every activation is preceded by an affine layer norm (Ba, Kiros & Hinton 2016, arXiv
            1607.06450).
        skip: Whether a linear map of the input, without a bias of its own, is added to the output: what is linear in
            the data is then nothing the hidden layers have to imitate.
        bf16: Whether matrix products take their factors as bfloat16; everything else is as the weights are.
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
        """Returns parameters (M,) for one member: uniform in ±1/√inputs, as PyTorch's own linear layers start, and
        layer norms and a skip that change nothing."""
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

    def workspace(self, p: int, b: int, like: Tensor) -> Workspace:
        """Returns memory for p members and batches of b rows, of the type and on the device of ``like``."""
        return Workspace(
            [like.new_empty(p, b, o) for o in self.sizes[1:]], [like.new_empty(p, b, i) for i in self.sizes[:-1]]
        )

    def forward(
        self,
        layers: list[Layer],
        x: Tensor,
        workspace: Workspace | None = None,
        dropout: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tape]:
        """Returns the network's output (p, b, o), and what ``backward`` needs.

        Args:
            layers: The weights.
            x: (p, b, i).
            workspace: Where the linear maps are written; new memory without it.
            dropout: Factors on the output of every hidden layer, (p, b, o) each; none without it.
        """
        tape, last, skip = [], len(layers) - 1, layers[-1].skip
        for index, layer in enumerate(layers):
            step = Step(x)
            out = workspace.outputs[index] if workspace else None
            x = product(x, layer.weight, layer.bias, out, bf16=self.bf16)
            if index < last:
                x, step = self._activate(x, step, layer, dropout[index] if dropout else None)
            tape.append(step)
        if skip is not None:
            x.add_(product(tape[0].x, skip, bf16=self.bf16))
        return x, tape

    def _activate(self, x: Tensor, step: Step, layer: Layer, dropout: Tensor | None) -> tuple[Tensor, Step]:
        """Carries a linear map's result (p, b, o), which may be written over, to the next layer's input."""
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
        into: list[Layer] | None,
        workspace: Workspace | None = None,
        *,
        to_input: Tensor | bool = True,
    ) -> Tensor:
        """Carries a gradient from the output back to the input.

        Args:
            layers: The weights.
            tape: What ``forward`` returned beside the output.
            grad: (p, b, o), the gradient with respect to the output.
            into: Where the gradients of the weights are written; None when the network is frozen.
            workspace: Where the gradients of the layers' inputs are written; new memory without it.
            to_input: Whether the gradient with respect to the input is wanted, or where it is to be written.

        Returns:
            The gradient with respect to the input (p, b, i), or, when not wanted, to the first layer's output.
        """
        output, skip = grad, layers[-1].skip
        if into is not None and into[-1].skip is not None:
            product(tape[0].x.mT, output, out=into[-1].skip, bf16=self.bf16)
        for index in reversed(range(len(layers))):
            if into is not None:
                product(tape[index].x.mT, grad, out=into[index].weight, bf16=self.bf16)
                torch.sum(grad, dim=1, keepdim=True, out=into[index].bias)
            if index > 0:
                out = workspace.gradients[index] if workspace else None
                grad = product(grad, layers[index].weight.mT, out=out, bf16=self.bf16)
                grad = self._activate_backward(
                    grad, tape[index - 1], layers[index - 1], into[index - 1] if into is not None else None
                )
            elif isinstance(to_input, Tensor):
                grad = product(grad, layers[0].weight.mT, out=to_input, bf16=self.bf16)
            elif to_input:
                grad = product(grad, layers[0].weight.mT, bf16=self.bf16)
        if skip is not None and to_input is not False:
            grad.add_(product(output, skip.mT, bf16=self.bf16))
        return grad

    def _activate_backward(self, grad: Tensor, step: Step, layer: Layer, into: Layer | None) -> Tensor:
        """Carries a gradient (p, b, o), which may be written over, from the next layer's input to the linear map."""
        if step.dropout is not None:
            grad.mul_(step.dropout)
        assert step.activated is not None
        grad = self.activation.backward(grad, step.activated)
        if step.norm is None or layer.scale is None:
            return grad
        x, normalised, mean, inverse_std = step.norm
        if into is not None:
            torch.sum(grad * normalised, dim=1, keepdim=True, out=into.scale)
            torch.sum(grad, dim=1, keepdim=True, out=into.shift)
        shape, wanted = x.shape[-1:], [True, False, False]
        carried: tuple[Tensor, ...] = _aten.native_layer_norm_backward(
            grad.mul_(layer.scale), x, shape, mean, inverse_std, None, None, wanted
        )
        return carried[0]
