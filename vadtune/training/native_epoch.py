"""Which decoders are trained and fitted by machine code on a CPU, and the way there from PyTorch's tensors.

PyTorch's operations do the same for all others. Shape comments: n rows, d features, k latent dimensions, s of a row,
M parameters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vadtune import native
from vadtune.config import TrialConfig
from vadtune.models import Family
from vadtune.models.objective import Prior
from vadtune.models.products import on_threads
from vadtune.native import kernels, run
from vadtune.training.batches import Epoch


def supports_training(config: TrialConfig) -> bool:
    """Returns whether a configuration is trained by machine code: one it knows, where there is numba."""
    return native.supports_training(config) and kernels("decoder") is not None


def supports_inference(config: TrialConfig) -> bool:
    """Returns whether the posteriors of new rows are fitted by machine code: under a decoder it knows, where there is
    numba."""
    return native.supports_inference(config) and kernels("decoder") is not None


def train_epoch(
    family: Family,
    config: TrialConfig,
    weights: tuple[Tensor, Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    x: Tensor,
    epoch: Epoch,
    index: int,
) -> tuple[float, float, float]:
    """Trains one member for an epoch.

    Args:
        family: Its family.
        config: Its configuration, which ``supports_training`` knows.
        weights: Its networks' parameters (M,), memory for their gradient (M,), the optimiser's moments (2, M); all
            updated in place.
        rows: The posterior_params of its rows (n, s) and their moments (2, n, s); updated in place.
        x: The train rows (n, d), NaN where missing.
        epoch: What the epoch sees.
        index: Which of the epoch's members it is.

    Returns:
        The sum of squared errors, what the features' noise makes of it, the sum of KL divergences in nats.
    """
    code, train = kernels("decoder"), config.train
    assert code is not None
    (parameters, grad, moments), (posterior_params, row_moments) = weights, rows
    noisy = family.architecture.noise == "learned"
    errors, weighted, divergence = run(
        code.train_epoch,
        parameters.numpy(),
        grad.numpy(),
        *moments.numpy(),
        posterior_params.numpy(),
        *row_moments.numpy(),
        *_decoder(family),
        noisy,
        *_posterior(family, config),
        x.numpy(),
        epoch.order.numpy(),
        epoch.batch_size,
        epoch.normaliser.numpy(),
        epoch.noise.numpy(),
        float(train.kl_weight),
        epoch.epochs[index],
        np.ascontiguousarray(epoch.net_lr[:, index]),
        float(epoch.latent_lr[index]),
        float(train.weight_decay),
        train.optimiser == "adamw",
    )
    return errors, weighted if noisy else errors, divergence


def fit_rows(
    family: Family,
    config: TrialConfig,
    weights: Tensor,
    posterior_params: Tensor,
    x: Tensor,
    *,
    precision: Tensor,
    noise: Tensor,
    kl_weight: float,
    prior: Prior,
    rates: np.ndarray,
) -> None:
    """Fits the posteriors of new rows to their observed cells under one model, with as many threads as PyTorch has.

    Args:
        family: Of the model.
        config: Of the model, which ``supports_inference`` knows.
        weights: Of its networks (M,).
        posterior_params: Where the posteriors start (n, s); updated in place.
        x: The rows (n, d), NaN where missing.
        precision: Of the features' noise, (d,).
        noise: Standard normal draws of every step, the same for all rows, (steps, k).
        kl_weight: Factor on the divergence from the prior.
        prior: Of the latents, (k,) each.
        rates: The learning rate of every step (steps,).
    """
    code = kernels("decoder")
    assert code is not None
    own, values = posterior_params.numpy(), x.numpy()
    k = family.architecture.latent
    mean, precise = (torch.as_tensor(value, dtype=torch.float32).expand(k).contiguous().numpy() for value in prior)
    how = (*_decoder(family), precision.contiguous().numpy(), *_posterior(family, config))

    def fit(rows: slice) -> None:
        run(
            code.fit_rows,
            weights.contiguous().numpy(),
            own[rows],
            *how,
            values[rows],
            noise.contiguous().numpy(),
            kl_weight,
            mean,
            precise,
            rates,
        )

    on_threads(fit, len(x), code.BLOCK)


def _decoder(family: Family) -> tuple[np.ndarray, bool, bool]:
    """Returns the decoder's widths, whether its activation is tanh, whether it has a skip."""
    architecture = family.architecture
    return np.array(family.networks["decoder"].sizes), architecture.activation == "tanh", architecture.skip


def _posterior(family: Family, config: TrialConfig) -> tuple[bool, float]:
    """Returns whether log variances are learned, and the fixed one."""
    kind = family.architecture.posterior
    return kind == "learned", -math.inf if kind == "none" else float(config.model.log_var)
