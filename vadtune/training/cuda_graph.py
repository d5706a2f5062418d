"""How decoders that machine_code.py does not know are trained by compiled code: ``train.compile``.

On a CPU ``on`` leaves a batch's two passes to PyTorch's compiler, which takes a quarter to half of a minute for every
shape, and what comes out is no faster than the passes as they are: ``auto`` does not. On a GPU a batch costs mostly the
launching of its operations. There the passes are captured as one CUDA graph and launched as one, which takes a moment
for every shape and pays where many batches are left.

Shape comments: p members, b rows, d features, k latent dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from vadtune.models.networks import MLP, Layer, Workspace
from vadtune.models.objective import reconstruction

logger = logging.getLogger(__name__)

_CAPTURE_STEPS = 200  # a capture costs about as much as so many batches
_WARM_UPS = 3  # before a capture, so that what libraries set up at their first call stays outside

Passes = Callable[..., tuple[Tensor, Tensor]]
"""``objective.reconstruction`` of given weights: takes z, x, weight, and by name grad_z, dropout and log_noise."""


def decoder_passes(
    decoder: MLP, layers: list[Layer], into: list[Layer], workspace: Workspace, *, how: str, steps: int
) -> Passes:
    """Returns the passes over these weights, for batches of the workspace's size.

    Args:
        decoder: Shape of the decoder.
        layers: Its weights.
        into: Where their gradients are written.
        workspace: Memory for the passes.
        how: auto, on or off.
        steps: How many batches are left to train, for auto.
    """
    on_gpu = workspace.outputs[0].is_cuda
    if on_gpu and (how == "on" or (how == "auto" and steps >= _CAPTURE_STEPS)):
        return _Captured(partial(reconstruction, decoder, layers, into=into, workspace=workspace))
    function = _by_compiler() if how == "on" and not on_gpu else reconstruction
    return partial(function, decoder, layers, into=into, workspace=workspace)


@cache
def _by_compiler() -> Passes:
    """Returns the passes for PyTorch's compiler to compile at their first call, or as they are where it cannot."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        logger.warning("train.compile: on needs a C++ compiler and finds none, trains without; install g++ or clang++")
        return reconstruction
    compiled: Passes = torch.compile(reconstruction, dynamic=False)
    return compiled


class _Captured:
    """The passes as one CUDA graph, captured at the first call and replayed from then on.

    Args:
        run: The passes.
    """

    def __init__(self, run: Passes) -> None:
        self._run, self._graph = run, torch.cuda.CUDAGraph()
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        z: Tensor,
        x: Tensor,
        weight: Tensor,
        *,
        grad_z: Tensor | bool,
        dropout: Sequence[Tensor] | None,
        log_noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns what the passes return, in memory that the next call writes over."""
        given = [z, x, weight, *([] if log_noise is None else [log_noise]), *(dropout or ())]
        if self._outputs is None:
            self._inputs = [tensor.clone() for tensor in given]
            self._outputs = self._capture(noisy=log_noise is not None)
        for kept, tensor in zip(self._inputs, given, strict=True):
            kept.copy_(tensor)
        self._graph.replay()
        residual, found = self._outputs
        return residual, grad_z.copy_(found) if isinstance(grad_z, Tensor) else found

    def _capture(self, *, noisy: bool) -> tuple[Tensor, Tensor]:
        z, x, weight, *rest = self._inputs
        log_noise = rest.pop(0) if noisy else None
        run = partial(self._run, z, x, weight, dropout=rest or None, log_noise=log_noise)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph):
            return run()
