"""What a decoder's last layer gives: the columns themselves, or a scene of which the columns are a picture.

Shape comments: p members, b rows, l points, d = 2 l features, o = 3 l + 12 outputs of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vadtune.models.networks import MLP, Layer, Step, Tape, Workspace


@dataclass(frozen=True)
class ProjectionMLP(MLP):
    """A perceptron that gives l points in space and a camera; its output is their picture (x, y, x, y, ...).

    Of every row the last layer gives points X (l, 3) and a transform T (4, 3). The picture is the first two columns of

        [X, 1] @ T

    and the third, the depth, is seen by nobody. This is structure from motion with an affine camera, as in the landmark
    experiment of Zadeh et al. 2019 (arXiv 1903.00840).
    """

    @classmethod
    def over(cls, mlp: MLP) -> ProjectionMLP:
        """Returns a perceptron with the picture in place of the outputs of ``mlp``, x and y of every point."""
        return cls((*mlp.sizes[:-1], mlp.sizes[-1] // 2 * 3 + 12), mlp.activation, mlp.layer_norm)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns parameters (M,) for one member; cameras look along the third axis, so that points are told at once
        where to go."""
        flat = super().initial(generator)
        flat[-12:] += torch.eye(4, 3).flatten()  # the last layer's bias ends with the transform's
        return flat

    def forward(
        self,
        layers: list[Layer],
        x: Tensor,
        workspace: Workspace | None = None,
        dropout: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tape]:
        """Returns the picture (p, b, d), and what ``backward`` needs. See MLP."""
        scene, tape = super().forward(layers, x, workspace, dropout)
        points, transform = _parts(scene)
        picture = points @ transform[..., :3, :2] + transform[..., 3:, :2]
        return picture.flatten(-2), [*tape, Step(scene)]

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
        """Carries a gradient from the picture (p, b, d) back to the input. See MLP."""
        *rest, (scene, *_) = tape
        points, transform = _parts(scene)
        grad = grad.view(*grad.shape[:2], -1, 2)  # (p, b, l, 2)
        carried = torch.zeros_like(scene)
        grad_points, grad_transform = _parts(carried)
        grad_points.copy_(grad @ transform[..., :3, :2].mT)
        grad_transform[..., :3, :2] = points.mT @ grad
        grad_transform[..., 3, :2] = grad.sum(-2)
        return super().backward(layers, rest, carried, into, workspace, to_input=to_input)


def _parts(scene: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the points (p, b, l, 3) and the transforms (p, b, 4, 3) of scenes (p, b, o), as views."""
    p, b, o = scene.shape
    return scene[..., :-12].view(p, b, o // 3 - 4, 3), scene[..., -12:].view(p, b, 4, 3)


HEADS: dict[str, Callable[[MLP], MLP]] = {"plain": lambda mlp: mlp, "projection": ProjectionMLP.over}
"""Name -> the decoder, given the perceptron whose outputs are the columns."""
