"""Output heads of the decoder: the features themselves, or the 2D projection of a 3D scene.

Shape comments: p members, b rows, l points, d = 2 l features, o = 3 l + 12 outputs of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vadtune.models.networks import MLP, Layer, Step, Tape


@dataclass(frozen=True)
class ProjectionMLP(MLP):
    """A perceptron that outputs l points in space and a camera, projected to image coordinates (x, y, x, y, ...).

    For every row the last layer outputs points X (l, 3) and a transform T (4, 3). The projection is the first two
    columns of [X, 1] @ T; the third, the depth, is not observed. This is structure from motion with an affine camera,
    as in the landmark experiment of Zadeh et al. 2019 (arXiv 1903.00840).
    """

    @classmethod
    def over(cls, mlp: MLP) -> ProjectionMLP:
        """Returns ``mlp`` with its outputs, x and y of every point, replaced by a projection."""
        return cls((*mlp.sizes[:-1], mlp.sizes[-1] // 2 * 3 + 12), mlp.activation, mlp.layer_norm)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns initial parameters (M,) of one member; all cameras look along the third axis."""
        flat = super().initial(generator)
        flat[-12:] += torch.eye(4, 3).flatten()  # the last layer's bias ends with the transform's
        return flat

    def forward(self, layers: list[Layer], x: Tensor, dropout: Sequence[Tensor] | None = None) -> tuple[Tensor, Tape]:
        """Returns the projection (p, b, d) and the tape for ``backward``. See MLP."""
        scene, tape = super().forward(layers, x, dropout)
        points, transform = _parts(scene)
        projection = points @ transform[..., :3, :2] + transform[..., 3:, :2]
        return projection.flatten(-2), [*tape, Step(scene)]

    def backward(
        self,
        layers: list[Layer],
        tape: Tape,
        grad: Tensor,
        grads_out: list[Layer] | None,
        *,
        grad_input: Tensor | bool = True,
    ) -> Tensor:
        """Backpropagates a gradient from the projection (p, b, d) to the input. See MLP."""
        *rest, (scene, *_) = tape
        points, transform = _parts(scene)
        grad = grad.view(*grad.shape[:2], -1, 2)  # (p, b, l, 2)
        grad_scene = torch.zeros_like(scene)
        grad_points, grad_transform = _parts(grad_scene)
        grad_points.copy_(grad @ transform[..., :3, :2].mT)
        grad_transform[..., :3, :2] = points.mT @ grad
        grad_transform[..., 3, :2] = grad.sum(-2)
        return super().backward(layers, rest, grad_scene, grads_out, grad_input=grad_input)


def _parts(scene: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the points (p, b, l, 3) and the transforms (p, b, 4, 3) of scenes (p, b, o), as views."""
    p, b, o = scene.shape
    return scene[..., :-12].view(p, b, o // 3 - 4, 3), scene[..., -12:].view(p, b, 4, 3)


HEADS: dict[str, Callable[[MLP], MLP]] = {"plain": lambda mlp: mlp, "projection": ProjectionMLP.over}
"""Name -> function that returns the decoder, given the perceptron whose outputs are the features."""
