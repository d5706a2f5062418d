"""How decoders are trained by compiled code: ``train.compile``.

On a CPU ``auto`` and ``on`` take the machine code of native.py for whole epochs, where it knows the decoder. For all
others ``on`` leaves a batch's two passes to PyTorch's compiler, which takes a quarter to half of a minute for every
shape, and what comes out is no faster than the passes as they are: ``auto`` does not. On a GPU a batch costs mostly the
launching of its operations. There the passes are captured as one CUDA graph and launched as one, which takes a moment
for every shape and pays where many batches are left.

Shape comments: p members, b rows, d features, k latent dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from vadtune.batches import Epoch
from vadtune.config import TrialConfig
from vadtune.model import Family
from vadtune.model.networks import MLP, Layer, Workspace
from vadtune.model.objective import reconstruction
from vadtune.model.products import use_threads

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


def knows_natively(family: Family, config: TrialConfig) -> bool:
    """Returns whether a configuration is trained by machine code on a CPU: where there is numba, a decoder without
    encoder, layer norm or dropout, by relu or tanh, in float32, by Adam or AdamW."""
    architecture, train = family.architecture, config.train
    plain = not (family.amortised or architecture.exact or architecture.layer_norm or config.model.dropout)
    known = architecture.activation in ("", "relu", "tanh") and train.optimiser in ("adam", "adamw")
    wanted = train.compile != "off" and train.precision == "float32"
    return plain and known and architecture.head == "plain" and wanted and _native() is not None


def train_natively(
    family: Family,
    config: TrialConfig,
    weights: tuple[Tensor, Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    x: Tensor,
    epoch: Epoch,
    index: int,
) -> tuple[float, float, float]:
    """Trains one member for an epoch by machine code.

    Args:
        family: Its family.
        config: Its configuration.
        weights: Its networks' parameters (M,), memory for their gradient (M,), the optimiser's moments (2, M); all
            updated in place.
        rows: The statistics of its rows (n, s) and their moments (2, n, s); updated in place.
        x: The train rows (n, d), NaN where missing.
        epoch: What the epoch sees.
        index: Which of the epoch's members it is.

    Returns:
        The sum of squared errors, what the features' noise makes of it, the sum of KL divergences in nats.
    """
    native, train, architecture = _native(), config.train, family.architecture
    assert native is not None
    (parameters, grad, moments), (statistics, row_moments) = weights, rows
    noisy = architecture.noise == "learned"
    errors, weighted, divergence = native.train_epoch(
        parameters.numpy(),
        grad.numpy(),
        *moments.numpy(),
        statistics.numpy(),
        *row_moments.numpy(),
        np.array(family.networks["decoder"].sizes),
        architecture.activation == "tanh",
        architecture.skip,
        noisy,
        architecture.posterior == "learned",
        -math.inf if architecture.posterior == "none" else float(config.model.log_var),
        x.numpy(),
        epoch.order.numpy(),
        epoch.batch_size,
        epoch.normaliser.numpy(),
        epoch.noise.numpy(),
        float(train.kl_weight),
        epoch.epochs[index],
        np.array([epoch.net_lr(step)[index] for step in range(epoch.steps)]),
        float(epoch.latent_lr[index]),
        float(train.weight_decay),
        train.optimiser == "adamw",
    )
    return errors, weighted if noisy else errors, divergence


@cache
def _native() -> ModuleType | None:
    """Returns native.py; None without numba, which is no error: everything trains without it, too."""
    try:
        from vadtune import native
    except ImportError:
        return None
    use_threads(torch.get_num_threads())  # its BLAS was not there when the number was set
    return native


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
