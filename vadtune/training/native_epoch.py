"""Calls the compiled decoder kernels (native/decoder_kernels.py) with PyTorch's tensors, on a CPU.

``native.supports_training`` and ``native.supports_inference`` say for which configurations. Shape comments: n rows,
d features, k latent dims, s posterior parameters of a row, M parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vadtune import native
from vadtune.config import TrialConfig
from vadtune.models import Family
from vadtune.models.objective import Prior
from vadtune.training.batches import Epoch

if TYPE_CHECKING:  # imports Numba
    from vadtune.native.decoder_passes import Shape


def train_epoch(
    family: Family,
    config: TrialConfig,
    weights: tuple[Tensor, Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    x: Tensor,
    epoch: Epoch,
    index: int,
) -> tuple[float, float, float]:
    """Trains one member for an epoch, in place.

    Args:
        family: The member's family.
        config: The member's configuration.
        weights: Network parameters (M,), memory for their gradient (M,), the optimiser's moments (2, M).
        rows: Posterior parameters of the train rows (n, s) and their moments (2, n, s).
        x: The train rows (n, d), NaN where missing.
        epoch: Batches, draws and learning rates.
        index: The member's position among those of the epoch.

    Returns:
        The sum of squared errors, the same in units of the observation noise (see objective.noise_gradient), and the
        sum of KL divergences in nats.
    """
    from vadtune.native import decoder_kernels as kernels

    (parameters, grad, moments), (posterior_params, row_moments), train = weights, rows, config.train
    settings = kernels.Settings(
        float(train.kl_weight),
        epoch.epochs[index],
        np.ascontiguousarray(epoch.net_lr[:, index]),
        float(epoch.latent_lr[index]),
        float(train.weight_decay),
        train.optimiser == "adamw",
    )
    order, normaliser, eps = epoch.order.numpy(), epoch.normaliser.numpy(), epoch.eps.numpy()
    learned, log_var = _log_var(family, config)
    first, second = row_moments.numpy()
    errors, weighted, divergence = native.call(
        kernels.train_epoch,
        _shape(family),
        kernels.Network(parameters.numpy(), grad.numpy(), *moments.numpy()),
        kernels.Posteriors(posterior_params.numpy(), first, second, learned, log_var),
        kernels.Batches(x.numpy(), order, epoch.batch_size, normaliser, eps),
        settings,
    )
    return errors, weighted if family.architecture.noise == "learned" else errors, divergence


def fit_rows(
    family: Family,
    config: TrialConfig,
    weights: Tensor,
    posterior_params: Tensor,
    x: Tensor,
    *,
    precision: Tensor,
    eps: Tensor,
    kl_weight: float,
    prior: Prior,
    lr: np.ndarray,
) -> None:
    """Fits the posteriors of new rows to their observed cells under one model, in place.

    Args:
        family: The model's family.
        config: The model's configuration.
        weights: Network parameters (M,).
        posterior_params: Where the posteriors start (n, s).
        x: The rows (n, d), NaN where missing.
        precision: Inverse variances of the observation noise, (d,).
        eps: Standard normal draws of every step, shared by all rows, (steps, k).
        kl_weight: Factor on the divergence from the prior.
        prior: Of the latents, (k,) each.
        lr: Learning rate of every step (steps,).
    """
    from vadtune.native import decoder_kernels as kernels

    def latents(value: Tensor | float) -> np.ndarray:
        expanded = torch.as_tensor(value, dtype=torch.float32).expand(family.architecture.latent)
        return np.ascontiguousarray(expanded.numpy())

    shape, parameters = _shape(family), weights.contiguous().numpy()
    params, values, draws = posterior_params.numpy(), x.numpy(), eps.contiguous().numpy()
    prior_of_latents = kernels.Prior(latents(prior.mean), latents(prior.precision))
    first, second = np.zeros_like(params), np.zeros_like(params)

    def run(part: slice) -> None:
        rows = kernels.Posteriors(params[part], first[part], second[part], *_log_var(family, config))
        data = kernels.NewRows(
            values[part], draws, precision.contiguous().numpy(), float(kl_weight), prior_of_latents, lr
        )
        kernels.fit_rows(shape, parameters, rows, data)

    native.call_on_row_blocks(run, len(x), kernels.BLOCK, torch.get_num_threads())


def _shape(family: Family) -> Shape:
    from vadtune.native.decoder_passes import Shape

    architecture, sizes = family.architecture, np.array(family.networks["decoder"].sizes)
    return Shape(sizes, architecture.activation == "tanh", architecture.skip, architecture.noise == "learned")


def _log_var(family: Family, config: TrialConfig) -> tuple[bool, float]:
    """Returns whether log variances are learned, and the fixed one."""
    kind = family.architecture.posterior
    return kind == "learned", -math.inf if kind == "none" else float(config.model.log_var)
