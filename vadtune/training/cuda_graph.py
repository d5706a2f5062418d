"""CUDA graphs of the decoder's passes: ``train.compile``.

On a GPU a batch costs mostly the launching of its operations. Captured as one CUDA graph, the passes are one launch.
Capturing takes a moment for every shape, so ``auto`` captures only if many batches remain. On a CPU ``on`` means the
same as ``auto``.

Shape comments: p members, b rows, d features, k latent dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vadtune.models.networks import MLP, Layer
from vadtune.models.objective import reconstruction

_CAPTURE_STEPS = 200  # a capture costs about as much as this many batches
_WARM_UPS = 3  # before a capture, so that what libraries set up at their first call stays outside of it

Passes = Callable[..., tuple[Tensor, Tensor]]
"""``objective.reconstruction`` with given weights: takes z, x, weight, and by name grad_z, dropout and obs_log_var."""


def decoder_passes(
    decoder: MLP, layers: list[Layer], grads_out: list[Layer], *, compile_mode: str, steps_left: int
) -> Passes:
    """Returns the forward and backward passes of a decoder with these weights, as a CUDA graph where that pays.

    Args:
        decoder: Shape of the decoder.
        layers: Its weights.
        grads_out: Where their gradients are written.
        compile_mode: auto, on or off.
        steps_left: Number of batches left to train.
    """
    passes = partial(reconstruction, decoder, layers, grads_out=grads_out)
    worth_it = compile_mode == "on" or (compile_mode == "auto" and steps_left >= _CAPTURE_STEPS)
    return _Captured(passes) if layers[0].weight.is_cuda and worth_it else passes


class _Captured:
    """The passes as a CUDA graph for one shape of inputs: captured at the first call, replayed afterwards.

    Args:
        passes: The passes.
    """

    def __init__(self, passes: Passes) -> None:
        self._run, self._graph = passes, torch.cuda.CUDAGraph()
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
        obs_log_var: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the results of the passes, in memory that the next call overwrites."""
        inputs = [z, x, weight, *([] if obs_log_var is None else [obs_log_var]), *(dropout or ())]
        if self._outputs is None:
            self._inputs = [tensor.clone() for tensor in inputs]
            self._outputs = self._capture(noisy=obs_log_var is not None)
        for captured, tensor in zip(self._inputs, inputs, strict=True):
            captured.copy_(tensor)
        self._graph.replay()
        residual, gradient = self._outputs
        return residual, grad_z.copy_(gradient) if isinstance(grad_z, Tensor) else gradient

    def _capture(self, *, noisy: bool) -> tuple[Tensor, Tensor]:
        z, x, weight, *rest = self._inputs
        obs_log_var = rest.pop(0) if noisy else None
        run = partial(self._run, z, x, weight, dropout=rest or None, obs_log_var=obs_log_var)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph):
            return run()
