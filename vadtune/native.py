"""An epoch of a decoder in machine code: what a CPU does for one member of a population, batch after batch.

The networks here are so small that on a CPU most of a batch's time goes into calling operations and into carrying their
results through memory. Numba compiles an epoch, the optimiser's steps included, into one call: matrix products by
SciPy's BLAS, and between them as few passes as it takes. It computes what Population's own operations compute, with
sums taken in another order. What was compiled is kept beside this file, or else in the user's cache, for all later
processes.

Importing this module needs numba, and half a second.

Shape comments: n rows, b batch rows, d features, k latent dimensions, i inputs, o outputs, M parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # loaded now rather than at the first product, so that its threads can be set
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_BETA1, _BETA2, _EPS = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
_BOUND = np.float32(4.0)  # of noise.py
_LOG2_E, _LN_2 = np.float32(1.44269504), np.float32(0.69314718)
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1.0), np.float32(2.0)
_EXP_END, _TANH_END = np.float32(80.0), np.float32(10.0)  # where exp is as good as infinite, and tanh is 1

# Sums may be taken in any order, so that loops use the whole vector width; NaN and infinity stay what they are.
_HOW: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_machine_code = njit(cache=True, nogil=True, **_HOW)
_inlined = njit(inline="always", **_HOW)


@_machine_code
def train_epoch(
    parameters: Floats,
    grad: Floats,
    first: Floats,
    second: Floats,
    statistics: Floats,
    row_first: Floats,
    row_second: Floats,
    sizes: Integers,
    tanh: bool,
    skip: bool,
    noisy: bool,
    learned: bool,
    log_var: float,
    x: Floats,
    order: Integers,
    size: int,
    normaliser: Floats,
    noise: Floats,
    kl_weight: float,
    epochs: int,
    rates: NDArray[np.float64],
    row_rate: float,
    decay: float,
    decoupled: bool,
) -> tuple[float, float, float]:
    """Trains a decoder and the posteriors of its train rows for an epoch.

    Args:
        parameters: Of the decoder and the features' noise, (M,); updated in place.
        grad: Memory for their gradient, (M,).
        first: Adam's first moments (M,); updated in place.
        second: Adam's second moments (M,); updated in place.
        statistics: Of the rows' posteriors (n, s); updated in place.
        row_first: Their first moments (n, s); updated in place.
        row_second: Their second moments (n, s); updated in place.
        sizes: Widths of the decoder from input to output.
        tanh: Whether its activation is tanh; if not, relu.
        skip: Whether it has a skip.
        noisy: Whether the features' noise is learned.
        learned: Whether the statistics hold log variances.
        log_var: If not, all of them; minus infinity for deterministic latents.
        x: The train rows (n, d), NaN where missing.
        order: Of the rows in batches, (n,).
        size: Rows of a batch; the last may have fewer.
        normaliser: Observed cells of every batch (steps,).
        noise: Standard normal draws (n, k), in the order of x.
        kl_weight: Of the configuration.
        epochs: Completed before.
        rates: The learning rate of every step.
        row_rate: The learning rate of the rows.
        decay: Weight decay.
        decoupled: Whether it is AdamW's; if not, Adam's.

    Returns:
        The sum of squared errors; the sum over batches of the part of the loss, times the normaliser, that holds the
        features' noise; the sum of KL divergences in nats.
    """
    last, features, steps = len(sizes) - 2, sizes[-1], len(rates)
    weights, inputs = np.zeros(last + 2, np.int64), np.zeros(last + 2, np.int64)  # where each layer's begin
    for index in range(last + 1):
        weights[index + 1] = weights[index] + (sizes[index] + 1) * sizes[index + 1]
        inputs[index + 1] = inputs[index] + size * sizes[index]
    memory = np.empty(inputs[last + 1], np.float32)
    one, other = np.empty(size * sizes.max(), np.float32), np.empty(size * sizes.max(), np.float32)
    beside = np.empty(size * max(sizes[0], features), np.float32)
    skip_at = weights[last + 1]
    noisy_at = skip_at + (sizes[0] * features if skip else 0)
    log_noise, precision = np.zeros(features, np.float32), np.ones(features, np.float32)
    squares, counts = np.empty(features, np.float32), np.empty(features, np.float32)
    errors, noisy_errors, divergences = 0.0, 0.0, 0.0

    for step in range(steps):
        rows = order[step * size : (step + 1) * size]
        b, scale = len(rows), np.float32(2.0 / normaliser[step])
        given = _matrix(memory, 0, b, sizes[0])
        _draw(statistics, rows, noise, learned, log_var, given)

        for index in range(last):
            i, o = sizes[index], sizes[index + 1]
            out = _matrix(memory, inputs[index + 1], b, o)
            np.dot(_matrix(memory, inputs[index], b, i), _matrix(parameters, weights[index], i, o), out)
            _activate(out, parameters[weights[index] + i * o :], tanh)
        out = _matrix(one, 0, b, features)
        np.dot(
            _matrix(memory, inputs[last], b, sizes[last]),
            _matrix(parameters, weights[last], sizes[last], features),
            out,
        )
        if skip:
            linear = _matrix(beside, 0, b, features)
            np.dot(given, _matrix(parameters, skip_at, sizes[0], features), linear)
            out += linear
        if noisy:
            _log_variance(parameters[noisy_at:], log_noise, precision)
        bias = weights[last] + sizes[last] * features
        end = bias + features
        _residual(out, parameters[bias:end], x, rows, scale, precision, squares, counts, grad[bias:end])
        errors += squares.sum()
        if noisy:
            noisy_errors += _noise_backward(
                parameters[noisy_at:],
                log_noise,
                precision,
                squares,
                counts,
                kl_weight,
                normaliser[step],
                grad[noisy_at:],
            )

        if skip:
            np.dot(given.T, out, _matrix(grad, skip_at, sizes[0], features))
            np.dot(out, _matrix(parameters, skip_at, sizes[0], features).T, _matrix(beside, 0, b, sizes[0]))
        for index in range(last, -1, -1):
            i, o = sizes[index], sizes[index + 1]
            into = _matrix(memory, inputs[index], b, i)
            np.dot(into.T, out, _matrix(grad, weights[index], i, o))
            back = _matrix(other, 0, b, i)
            np.dot(out, _matrix(parameters, weights[index], i, o).T, back)
            if index > 0:
                _activate_backward(back, into, grad[weights[index] - i : weights[index]], tanh)
            one, other, out = other, one, back
        if skip:
            out += _matrix(beside, 0, b, sizes[0])
        weight = kl_weight / normaliser[step]
        divergences += _step_rows(
            statistics, row_first, row_second, rows, given, out, learned, log_var, weight, row_rate, epochs + 1
        )
        _adam(parameters, grad, first, second, rates[step], epochs * steps + step + 1, decay, decoupled)
    return errors, noisy_errors, divergences


@_inlined
def _matrix(memory, start, rows, columns):
    return memory[start : start + rows * columns].reshape(rows, columns)


@_machine_code
def _activate(out, bias, tanh):
    """Adds the bias to a hidden layer's products (b, o) and activates them, in place."""
    for r in range(out.shape[0]):
        row = out[r]
        if tanh:
            for j in range(len(row)):
                row[j] = _tanh(row[j] + bias[j])
        else:
            for j in range(len(row)):
                value = row[j] + bias[j]
                row[j] = value if not value <= 0 else np.float32(0.0)  # NaN stays


@_machine_code
def _activate_backward(back, activated, bias_grad, tanh):
    """Multiplies a gradient (b, o) with the activation's derivative, in place, and sums it over rows."""
    bias_grad[:] = 0
    for r in range(back.shape[0]):
        row, values = back[r], activated[r]
        if tanh:
            for j in range(len(row)):
                row[j] *= _ONE - values[j] * values[j]
                bias_grad[j] += row[j]
        else:
            for j in range(len(row)):
                row[j] = np.float32(0.0) if values[j] <= 0 else row[j]
                bias_grad[j] += row[j]


@_machine_code
def _residual(out, bias, x, rows, scale, precision, squares, counts, bias_grad):
    """Turns the last layer's products (b, d) into the gradient of the loss with respect to them; sums over rows its
    columns, the squared errors and the observed cells (d,)."""
    bias_grad[:] = 0
    squares[:] = 0
    counts[:] = 0
    for r in range(out.shape[0]):
        row, truth = out[r], x[rows[r]]
        for j in range(len(row)):
            seen = truth[j] == truth[j]
            error = row[j] + bias[j] - truth[j] if seen else np.float32(0.0)
            squares[j] += error * error
            counts[j] += _ONE if seen else np.float32(0.0)
            row[j] = error * scale * precision[j]
            bias_grad[j] += row[j]


@_machine_code
def _log_variance(parameters, log_noise, precision):
    """See noise.log_variance."""
    for j in range(len(parameters)):
        log_noise[j] = _BOUND * _tanh(parameters[j] / _BOUND)
    log_noise -= log_noise.mean()
    for j in range(len(parameters)):
        precision[j] = _exp(-log_noise[j])


@_machine_code
def _noise_backward(parameters, log_noise, precision, squares, counts, kl_weight, normaliser, grad):
    """See objective.noise_gradient and noise.log_variance_backward; returns the former's loss times the normaliser."""
    loss, mean = 0.0, 0.0
    for j in range(len(parameters)):
        error, spread = squares[j] * precision[j], _HALF * kl_weight * counts[j]
        loss += error + spread * log_noise[j]
        grad[j] = (spread - error) / normaliser
        mean += grad[j] / len(parameters)
    for j in range(len(parameters)):
        bounded = _tanh(parameters[j] / _BOUND)
        grad[j] = (grad[j] - mean) * (_ONE - bounded * bounded)
    return loss


@_machine_code
def _draw(statistics, rows, noise, learned, log_var, z):
    """Draws the latents of a batch (b, k); see objective.draw."""
    k = z.shape[1]
    deviation = np.float32(np.exp(0.5 * log_var))
    for r in range(len(rows)):
        row, one, drawn = z[r], statistics[rows[r]], noise[rows[r]]
        if learned:
            for j in range(k):
                row[j] = one[j] + _exp(_HALF * one[k + j]) * drawn[j]
        else:
            for j in range(k):
                row[j] = one[j] + deviation * drawn[j]


@_machine_code
def _step_rows(statistics, first, second, rows, z, grad_z, learned, log_var, weight, rate, taken):
    """Takes a step of the posteriors of a batch; see objective.posterior_gradients. Returns their KL divergences."""
    k = z.shape[1]
    grad = np.empty(statistics.shape[1], np.float32)
    pull, divergence = np.float32(weight), 0.0
    rest = 0.0 if learned or log_var == -np.inf else k * (np.exp(log_var) - 1.0 - log_var)
    for r in range(len(rows)):
        row, drawn, slope = statistics[rows[r]], z[r], grad_z[r]
        own = np.float32(rest)
        for j in range(k):
            grad[j] = slope[j] + pull * row[j]
            own += row[j] * row[j]
        if learned:
            for j in range(k):
                variance = _exp(row[k + j])
                grad[k + j] = _HALF * ((variance - _ONE) * pull + slope[j] * (drawn[j] - row[j]))
                own += variance - _ONE - row[k + j]
        divergence += float(own)
        _adam(row, grad, first[rows[r]], second[rows[r]], rate, taken, 0.0, True)
    return 0.5 * divergence


@_machine_code
def _adam(parameters, grad, first, second, rate, taken, decay, decoupled):
    """Takes a step, the taken-th; see optimiser.Adam and AdamW."""
    added = np.float32(0.0 if decoupled else decay)
    kept = np.float32(1.0 - rate * decay if decoupled else 1.0)
    pace = np.float32(rate / (1.0 - 0.9**taken))
    correction = np.float32(1.0 / np.sqrt(1.0 - 0.999**taken))
    for j in range(len(parameters)):
        slope = grad[j] + added * parameters[j]
        first[j] += (slope - first[j]) * (_ONE - _BETA1)
        second[j] = _BETA2 * second[j] + (_ONE - _BETA2) * slope * slope
        step = first[j] / (np.sqrt(second[j]) * correction + _EPS)
        parameters[j] = kept * parameters[j] - pace * step


@_inlined
def _exp(x):
    """Returns exp(x) without a branch, so that loops over it become vectors; beyond 80 it stays what it is there."""
    n, part = _powers(min(max(x, -_EXP_END), _EXP_END))
    return n * part + n


@_inlined
def _tanh(x):
    """Returns tanh(x) = e / (e + 2) with e = exp(2x) - 1."""
    n, part = _powers(_TWO * min(max(x, -_TANH_END), _TANH_END))
    e = n * part + (n - _ONE)
    return e / (e + _TWO)


@_inlined
def _powers(x):
    """Returns 2ⁿ and exp(r) - 1, x being n log 2 + r: the one by its bits, the other by its Taylor series to r⁷."""
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN_2
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + _HALF
    series = series * r + _ONE
    return np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32), series * r
