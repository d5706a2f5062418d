"""Kernels for decoders: a training epoch of one member, and the posteriors of new rows under a fixed decoder.

The networks are so small that on a CPU most of a batch's time goes into calling operations. Numba compiles an epoch,
optimiser steps included, into one call, and the inference of rows into another: matrix products by BLAS (``np.dot``)
and as few passes over memory as possible between them. The results are those of training/stack.py and
training/inference.py, up to rounding; the equations are in models/objective.py and training/optimiser.py.

Shape comments: n rows, b batch rows, d features, k latent dims, i inputs, o outputs, s posterior parameters of a row,
M network parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vadtune.native.compiling import helper, kernel
from vadtune.native.decoder_passes import (
    HALF,
    ONE,
    TWO,
    ZERO,
    Floats,
    Integers,
    Shape,
    decode,
    decode_backward,
    exp,
    matrix,
    new_buffers,
    tanh,
)

BLOCK = 128
"""Rows that ``fit_rows`` fits together; small enough to stay in the cache."""
_BETA2, _EPS = np.float32(0.999), np.float32(1e-8)
_GAIN1, _GAIN2 = np.float32(1 - 0.9), np.float32(1 - 0.999)  # rounded after the subtraction
_BOUND = np.float32(4.0)  # of models/observation_noise.py


class Network(NamedTuple):
    """Parameters of a decoder with the optimiser's state, (M,) each; updated in place.

    Attributes:
        weights: The parameters.
        grad: Memory for their gradient.
        first: Adam's first moments.
        second: Adam's second moments.
    """

    weights: Floats
    grad: Floats
    first: Floats
    second: Floats


class Posteriors(NamedTuple):
    """Posteriors of rows with the optimiser's state; the arrays are updated in place.

    Attributes:
        params: Means (n, k), followed by log variances where these are learned, (n, s).
        first: Adam's first moments (n, s).
        second: Adam's second moments (n, s).
        learned: Whether the log variances are learned.
        log_var: The fixed log variance otherwise; minus infinity for deterministic latents.
    """

    params: Floats
    first: Floats
    second: Floats
    learned: bool
    log_var: float


class Batches(NamedTuple):
    """The data of an epoch.

    Attributes:
        x: Train rows (n, d), NaN where missing.
        order: Row indices in the order of the batches (n,).
        size: Rows of a batch; the last may have fewer.
        normaliser: Observed cells of every batch (steps,).
        eps: Standard normal draws (n, k), in the order of x.
    """

    x: Floats
    order: Integers
    size: int
    normaliser: Floats
    eps: Floats


class Settings(NamedTuple):
    """Hyperparameters of an epoch.

    Attributes:
        kl_weight: Factor on the KL divergence.
        epochs: Number of completed epochs.
        net_lr: Learning rate of the decoder at every step (steps,).
        latent_lr: Learning rate of the posteriors.
        weight_decay: Of the decoder.
        decoupled: Whether the weight decay is AdamW's; otherwise Adam's.
    """

    kl_weight: float
    epochs: int
    net_lr: NDArray[np.float64]
    latent_lr: float
    weight_decay: float
    decoupled: bool


class Prior(NamedTuple):
    """A diagonal Gaussian over the latents: mean and precision (k,)."""

    mean: Floats
    precision: Floats


class NewRows(NamedTuple):
    """What ``fit_rows`` fits posteriors to.

    Attributes:
        x: The rows (n, d), NaN where missing.
        eps: Standard normal draws of every step, shared by all rows, (steps, k).
        precision: Inverse variance of each feature's observation noise, relative to the common one, (d,).
        kl_weight: Factor on the divergence from the prior.
        prior: Of the latents.
        lr: Learning rate of every step (steps,).
    """

    x: Floats
    eps: Floats
    precision: Floats
    kl_weight: float
    prior: Prior
    lr: NDArray[np.float64]


class _FeatureSums(NamedTuple):
    """Sums over a batch's observed cells of each feature (d,)."""

    squares: Floats
    counts: Floats


class _AdamStep(NamedTuple):
    """Coefficients of one step of Adam or AdamW."""

    lr: np.float32  # with the bias correction of the first moment
    correction: np.float32  # of the second moment's square root
    keep: np.float32  # factor on the parameters (AdamW's weight decay)
    l2: np.float32  # factor on the parameters that are added to the gradient (Adam's)


def _example() -> tuple[Shape, Network, Posteriors, Prior]:
    """Returns arguments of the types that all calls of the kernels have."""
    decoder = [np.zeros(2, np.float32) for _ in Network._fields]
    params, shape = np.zeros((1, 1), np.float32), Shape(np.ones(2, np.int64), False, False, False)
    return shape, Network(*decoder), Posteriors(params, params, params, False, 0.0), Prior(decoder[0], decoder[0])


def _epoch_example() -> tuple[Any, ...]:
    shape, network, rows, prior = _example()
    x, steps = rows.params, np.zeros(1)
    data = Batches(x, np.zeros(1, np.int64), 1, prior.mean, x)
    return shape, network, rows, data, Settings(0.0, 0, steps, 0.0, 0.0, True)


def _fit_example() -> tuple[Any, ...]:
    shape, network, rows, prior = _example()
    return shape, network.weights, rows, NewRows(rows.params, rows.params, prior.mean, 0.0, prior, np.zeros(1))


def _adam_example() -> tuple[Any, ...]:
    matrix_ = np.zeros((1, 1), np.float32)
    return matrix_, matrix_, matrix_, matrix_, matrix_


@kernel(_epoch_example)
def train_epoch(
    shape: Shape, network: Network, rows: Posteriors, data: Batches, settings: Settings
) -> tuple[float, float, float]:
    """Trains a decoder and the posteriors of its train rows for an epoch, in place.

    Returns:
        The sum of squared errors; with learned noise the sum over batches of the part of the loss that depends on it,
        times the normaliser (see objective.noise_gradient); the sum of KL divergences from N(0, I), in nats.
    """
    last, k, features, steps = len(shape.sizes) - 2, shape.sizes[0], shape.sizes[-1], len(settings.net_lr)
    buffers = new_buffers(shape.sizes, data.size)
    sums = _FeatureSums(np.empty(features, np.float32), np.empty(features, np.float32))
    obs_log_var, precision = np.zeros(features, np.float32), np.ones(features, np.float32)
    prior = Prior(np.zeros(k, np.float32), np.ones(k, np.float32))
    bias = buffers.weight_offsets[last] + shape.sizes[last] * features
    noise = buffers.weight_offsets[last + 1] + (k * features if shape.skip else 0)
    errors, weighted_errors, divergences = 0.0, 0.0, 0.0

    for step in range(steps):
        batch, normaliser = data.order[step * data.size : (step + 1) * data.size], data.normaliser[step]
        z = matrix(buffers.inputs, 0, len(batch), k)
        _sample(rows, batch, data.eps, batch, z)
        out = decode(network.weights, shape, buffers, len(batch))
        if shape.learned_noise:
            _observation_noise(network.weights[noise:], obs_log_var, precision)
        bias_grad = network.grad[bias : bias + features]
        scale = np.float32(2.0 / normaliser)
        _residual(out, network.weights[bias : bias + features], data.x, batch, scale, precision, sums, bias_grad)
        errors += sums.squares.sum()
        if shape.learned_noise:
            raw, grad = network.weights[noise:], network.grad[noise:]
            weighted_errors += _noise_backward(raw, obs_log_var, precision, sums, settings.kl_weight, normaliser, grad)
        grad_z = decode_backward(network.weights, network.grad, shape, buffers, len(batch))
        adam = _adam_coefficients(settings.latent_lr, settings.epochs + 1, 0.0, True)
        divergences += _step_rows(rows, batch, z, grad_z, settings.kl_weight / normaliser, prior, adam)
        adam = _adam_coefficients(
            settings.net_lr[step], settings.epochs * steps + step + 1, settings.weight_decay, settings.decoupled
        )
        _adam(network.weights, network.grad, network.first, network.second, adam)
    return errors, weighted_errors, divergences


@kernel(_fit_example)
def fit_rows(shape: Shape, weights: Floats, rows: Posteriors, data: NewRows) -> None:
    """Fits the posteriors of rows to their observed cells under a fixed decoder, in place.

    A block of rows takes all steps before the next, so that its data stays in the cache.
    """
    last, k, features = len(shape.sizes) - 2, shape.sizes[0], shape.sizes[-1]
    size = min(BLOCK, len(data.x))
    buffers = new_buffers(shape.sizes, size)
    sums = _FeatureSums(np.empty(features, np.float32), np.empty(features, np.float32))
    bias, unused = buffers.weight_offsets[last] + shape.sizes[last] * features, np.empty(features, np.float32)
    no_grad, eps_index = np.empty(0, np.float32), np.empty(size, np.int64)

    for start in range(0, len(data.x), size):
        block = np.arange(start, min(start + size, len(data.x)))
        z = matrix(buffers.inputs, 0, len(block), k)
        for step in range(len(data.lr)):
            eps_index[:] = step
            _sample(rows, block, data.eps, eps_index, z)
            out = decode(weights, shape, buffers, len(block))
            _residual(out, weights[bias : bias + features], data.x, block, TWO, data.precision, sums, unused)
            grad_z = decode_backward(weights, no_grad, shape, buffers, len(block))
            adam = _adam_coefficients(data.lr[step], step + 1, 0.0, True)
            _step_rows(rows, block, z, grad_z, data.kl_weight, data.prior, adam)


@kernel(_adam_example)
def adam_step(parameters: Floats, grad: Floats, first: Floats, second: Floats, coefficients: Floats) -> None:
    """Takes an Adam step of several members, in place; (p, M) each, coefficients (4, p) as in _AdamStep."""
    for i in range(len(parameters)):
        step = _AdamStep(coefficients[0, i], coefficients[1, i], coefficients[2, i], coefficients[3, i])
        _adam(parameters[i], grad[i], first[i], second[i], step)


@helper
def _residual(out, bias, x, rows, scale, precision, sums, bias_grad):
    """Replaces the decoder's output (b, d) by the loss gradient scale · precision · (x̂ - x), 0 where x is missing.

    Writes the sums over rows of the gradient (to bias_grad), of squared errors and of observed cells.
    """
    squares, counts = sums.squares, sums.counts
    bias_grad[:] = 0
    squares[:] = 0
    counts[:] = 0
    for r in range(out.shape[0]):
        row, truth = out[r], x[rows[r]]
        for j in range(len(row)):
            observed = truth[j] == truth[j]
            error = row[j] + bias[j] - truth[j] if observed else ZERO
            squares[j] += error * error
            counts[j] += ONE if observed else ZERO
            row[j] = error * scale * precision[j]
            bias_grad[j] += row[j]


@helper
def _observation_noise(raw, obs_log_var, precision):
    """Computes log variances and precisions (d,) from raw parameters; see observation_noise.log_variance."""
    mean = ZERO
    for j in range(len(raw)):
        obs_log_var[j] = _BOUND * tanh(raw[j] / _BOUND)
        mean += obs_log_var[j] / len(raw)
    for j in range(len(raw)):
        obs_log_var[j] -= mean
        precision[j] = exp(-obs_log_var[j])


@helper
def _noise_backward(raw, obs_log_var, precision, sums, kl_weight, normaliser, grad):
    """Writes the loss gradient of the raw noise parameters (d,); returns the loss part of objective.noise_gradient."""
    loss, mean = 0.0, 0.0
    for j in range(len(raw)):
        error, spread = sums.squares[j] * precision[j], HALF * kl_weight * sums.counts[j]
        loss += error + spread * obs_log_var[j]
        grad[j] = (spread - error) / normaliser
        mean += grad[j] / len(raw)
    for j in range(len(raw)):
        bounded = tanh(raw[j] / _BOUND)
        grad[j] = (grad[j] - mean) * (ONE - bounded * bounded)
    return loss


@helper
def _sample(rows, index, eps, eps_index, z):
    """Draws z = mean + exp(log_var / 2) · eps for a batch (b, k), each row with the draws eps[eps_index[r]]."""
    k, std = z.shape[1], np.float32(np.exp(0.5 * rows.log_var))
    for r in range(z.shape[0]):
        out, params, draws = z[r], rows.params[index[r]], eps[eps_index[r]]
        if rows.learned:
            for j in range(k):
                out[j] = params[j] + exp(HALF * params[k + j]) * draws[j]
        else:
            for j in range(k):
                out[j] = params[j] + std * draws[j]


@helper
def _step_rows(rows, index, z, grad_z, kl_weight, prior, adam):
    """Takes an Adam step of a batch's posteriors along objective.posterior_gradients.

    Returns the sum of their KL divergences from N(0, I) before the step.
    """
    k, weight, divergence = z.shape[1], np.float32(kl_weight), 0.0
    grad = np.empty(rows.params.shape[1], np.float32)
    deterministic = rows.log_var == -np.inf
    constant = 0.0 if rows.learned or deterministic else k * (np.exp(rows.log_var) - 1.0 - rows.log_var)
    for r in range(len(index)):
        params, draws, slope = rows.params[index[r]], z[r], grad_z[r]
        row_divergence = np.float32(constant)
        for j in range(k):
            grad[j] = slope[j] + weight * (prior.precision[j] * (params[j] - prior.mean[j]))
            row_divergence += params[j] * params[j]
        if rows.learned:
            for j in range(k):
                variance, deviation = exp(params[k + j]), draws[j] - params[j]
                grad[k + j] = HALF * ((variance * prior.precision[j] - ONE) * weight + slope[j] * deviation)
                row_divergence += variance - ONE - params[k + j]
        divergence += float(row_divergence)
        _adam(params, grad, rows.first[index[r]], rows.second[index[r]], adam)
    return 0.5 * divergence


@helper
def _adam_coefficients(lr, t, weight_decay, decoupled):
    """Returns the coefficients of step t = 1, 2, ...; see optimiser.Adam and AdamW."""
    return _AdamStep(
        np.float32(lr / (1.0 - 0.9**t)),
        np.float32(1.0 / np.sqrt(1.0 - 0.999**t)),
        np.float32(1.0 - lr * weight_decay if decoupled else 1.0),
        np.float32(0.0 if decoupled else weight_decay),
    )


@helper
def _adam(parameters, grad, first, second, step):
    lr, correction, keep, l2 = step
    for j in range(len(parameters)):
        slope = grad[j] + l2 * parameters[j]
        first[j] += (slope - first[j]) * _GAIN1
        second[j] = _BETA2 * second[j] + _GAIN2 * slope * slope
        parameters[j] = keep * parameters[j] - lr * (first[j] / (np.sqrt(second[j]) * correction + _EPS))
