"""Decoders in machine code: an epoch of one member of a population, and the posteriors of new rows.

The networks here are so small that on a CPU most of a batch's time goes into calling operations and into carrying their
results through memory. Numba compiles an epoch, the optimiser's steps included, into one call, and the fitting of new
rows into another: matrix products (products.py), and between them as few passes as it takes. Both compute what
PyTorch's operations do in training.py and inference.py, with sums taken in another order. machine_code.py calls both.

Shape comments: n rows, b batch rows, d features, k latent dimensions, i inputs, o outputs, M parameters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vadtune.native.compiling import inlined, machine_code, part
from vadtune.native.products import multiply, scratch
from vadtune.native.vectors import at

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_BETA1, _BETA2, _EPS = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
_BOUND = np.float32(4.0)  # of noise.py
_LOG2_E, _LN_2 = np.float32(1.44269504), np.float32(0.69314718)
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1.0), np.float32(2.0)
BLOCK = 128
"""Rows that are fitted at once."""
_EXP_END, _TANH_END = np.float32(80.0), np.float32(10.0)  # where exp is as good as infinite, and tanh is 1


@machine_code
def train_epoch(
    parameters: Floats,
    grad: Floats,
    first: Floats,
    second: Floats,
    posterior_params: Floats,
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
        posterior_params: Of the rows' posteriors (n, s); updated in place.
        row_first: Their first moments (n, s); updated in place.
        row_second: Their second moments (n, s); updated in place.
        sizes: Widths of the decoder from input to output.
        tanh: Whether its activation is tanh; if not, relu.
        skip: Whether it has a skip.
        noisy: Whether the features' noise is learned.
        learned: Whether the posterior_params hold log variances.
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
    weights, inputs = _places(sizes, size)
    memory, spare = np.empty(inputs[last + 1], np.float32), np.empty((4, size * sizes.max()), np.float32)
    room = scratch(max(size, sizes.max()))
    noisy_at = weights[last + 1] + (sizes[0] * features if skip else 0)
    log_noise, precision = np.zeros(features, np.float32), np.ones(features, np.float32)
    squares, counts = np.empty(features, np.float32), np.empty(features, np.float32)
    prior_mean, prior_precision = np.zeros(sizes[0], np.float32), np.ones(sizes[0], np.float32)
    errors, noisy_errors, divergences = 0.0, 0.0, 0.0

    for step in range(steps):
        rows = order[step * size : (step + 1) * size]
        b = len(rows)
        given = _matrix(memory, 0, b, sizes[0])
        _draw(posterior_params, rows, noise, rows, learned, log_var, given)
        out = _decode(parameters, sizes, weights, inputs, memory, spare, room, b, tanh, skip)
        if noisy:
            _log_variance(parameters[noisy_at:], log_noise, precision)
        bias = weights[last] + sizes[last] * features
        end, scale = bias + features, np.float32(2.0 / normaliser[step])
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
        back = _decode_backward(parameters, grad, sizes, weights, inputs, memory, spare, room, b, tanh, skip)
        divergences += _step_rows(
            posterior_params,
            row_first,
            row_second,
            rows,
            given,
            back,
            learned,
            log_var,
            kl_weight / normaliser[step],
            prior_mean,
            prior_precision,
            row_rate,
            epochs + 1,
        )
        _adam(parameters, grad, first, second, _pace(rates[step], epochs * steps + step + 1, decay, decoupled))
    return errors, noisy_errors, divergences


@machine_code
def fit_rows(
    parameters: Floats,
    posterior_params: Floats,
    sizes: Integers,
    tanh: bool,
    skip: bool,
    precision: Floats,
    learned: bool,
    log_var: float,
    x: Floats,
    noise: Floats,
    kl_weight: float,
    prior_mean: Floats,
    prior_precision: Floats,
    rates: NDArray[np.float64],
) -> None:
    """Fits the posteriors of rows to their observed cells under a decoder that stays as it is.

    A block of rows at a time takes all steps, so that what it works on stays in the cache.

    Args:
        parameters: Of the decoder (M,).
        posterior_params: Of the rows' posteriors (n, s), where they start; updated in place.
        sizes: Widths of the decoder from input to output.
        tanh: Whether its activation is tanh; if not, relu.
        skip: Whether it has a skip.
        precision: Of the features' noise (d,).
        learned: Whether the posterior_params hold log variances.
        log_var: If not, all of them; minus infinity for deterministic latents.
        x: The rows (n, d), NaN where missing.
        noise: Standard normal draws of every step, the same for all rows, (steps, k).
        kl_weight: Of the configuration.
        prior_mean: Of the latents (k,).
        prior_precision: Of the latents (k,).
        rates: The learning rate of every step.
    """
    last, features = len(sizes) - 2, sizes[-1]
    block = min(BLOCK, len(x))
    weights, inputs = _places(sizes, block)
    memory, spare = np.empty(inputs[last + 1], np.float32), np.empty((4, block * sizes.max()), np.float32)
    room = scratch(block)
    bias = weights[last] + sizes[last] * features
    nothing = np.empty(0, np.float32)
    squares, counts, sums = (
        np.empty(features, np.float32),
        np.empty(features, np.float32),
        np.empty(features, np.float32),
    )
    first, second = np.zeros(posterior_params.shape, np.float32), np.zeros(posterior_params.shape, np.float32)
    which = np.empty(block, np.int64)

    for start in range(0, len(x), block):
        rows = np.arange(start, min(start + block, len(x)))
        b = len(rows)
        given = _matrix(memory, 0, b, sizes[0])
        for step in range(len(rates)):
            which[:] = step
            _draw(posterior_params, rows, noise, which, learned, log_var, given)
            out = _decode(parameters, sizes, weights, inputs, memory, spare, room, b, tanh, skip)
            _residual(out, parameters[bias : bias + features], x, rows, _TWO, precision, squares, counts, sums)
            back = _decode_backward(parameters, nothing, sizes, weights, inputs, memory, spare, room, b, tanh, skip)
            _step_rows(
                posterior_params,
                first,
                second,
                rows,
                given,
                back,
                learned,
                log_var,
                kl_weight,
                prior_mean,
                prior_precision,
                rates[step],
                step + 1,
            )


@part
def _places(sizes, size):
    """Returns where the parameters of each layer begin, and where its inputs do in memory for so many rows."""
    weights, inputs = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    for index in range(len(sizes) - 1):
        weights[index + 1] = weights[index] + (sizes[index] + 1) * sizes[index + 1]
        inputs[index + 1] = inputs[index] + size * sizes[index]
    return weights, inputs


@part
def _decode(parameters, sizes, weights, inputs, memory, spare, room, b, tanh, skip):
    """Runs a decoder over b rows, from their latents at the start of memory, where hidden layers write to, too.

    Returns what its last layer gives (b, d) without that layer's bias, in the first part of spare.
    """
    last, k, d = len(sizes) - 2, sizes[0], sizes[-1]
    for index in range(last + 1):
        i, o = sizes[index], sizes[index + 1]
        into = at(memory, inputs[index + 1]) if index < last else at(spare[0], 0)
        multiply(at(memory, inputs[index]), False, at(parameters, weights[index]), False, b, i, o, False, into, room)
        if index < last:
            _activate(_matrix(memory, inputs[index + 1], b, o), parameters[weights[index] + i * o :], tanh)
    if skip:
        linear = at(parameters, weights[last + 1])
        multiply(at(memory, 0), False, linear, False, b, k, d, True, at(spare[0], 0), room)
    return _matrix(spare[0], 0, b, d)


@part
def _decode_backward(parameters, grad, sizes, weights, inputs, memory, spare, room, b, tanh, skip):
    """Carries a gradient (b, d) in the first part of spare back to the latents (b, k), which it returns.

    The gradients of all parameters but the last bias go to grad, unless that is empty.
    """
    last, k, d, learn = len(sizes) - 2, sizes[0], sizes[-1], len(grad) > 0
    if skip:
        latents, out, linear = at(memory, 0), at(spare[0], 0), at(parameters, weights[last + 1])
        if learn:
            multiply(latents, True, out, False, k, b, d, False, at(grad, weights[last + 1]), room)
        multiply(out, False, linear, True, b, d, k, False, at(spare[2], 0), room)
    for index in range(last, -1, -1):
        i, o = sizes[index], sizes[index + 1]
        inputs_at, weights_at = inputs[index], weights[index]
        out, back = spare[(last - index) % 2], spare[(last - index + 1) % 2] if index > 0 else spare[2]
        if learn:
            multiply(at(memory, inputs_at), True, at(out, 0), False, i, b, o, False, at(grad, weights_at), room)
        weight, add = at(parameters, weights_at), skip and index == 0
        multiply(at(out, 0), False, weight, True, b, o, i, add, at(back, 0), room)
        if index > 0:
            into = _matrix(memory, inputs_at, b, i)
            bias_grad = grad[weights_at - i : weights_at] if learn else spare[3]
            _activate_backward(_matrix(back, 0, b, i), into, bias_grad, tanh)
    return _matrix(spare[2], 0, b, k)


@inlined
def _matrix(memory, start, rows, columns):
    return memory[start : start + rows * columns].reshape(rows, columns)


@part
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


@part
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


@part
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


@part
def _log_variance(parameters, log_noise, precision):
    """See noise.log_variance."""
    mean = np.float32(0.0)
    for j in range(len(parameters)):
        log_noise[j] = _BOUND * _tanh(parameters[j] / _BOUND)
        mean += log_noise[j] / len(parameters)
    for j in range(len(parameters)):
        log_noise[j] -= mean
        precision[j] = _exp(-log_noise[j])


@part
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


@part
def _draw(posterior_params, rows, noise, which, learned, log_var, z):
    """Draws the latents of a batch (b, k), each by the row of noise that is named; see objective.draw."""
    k = z.shape[1]
    deviation = np.float32(np.exp(0.5 * log_var))
    for r in range(len(rows)):
        row, one, drawn = z[r], posterior_params[rows[r]], noise[which[r]]
        if learned:
            for j in range(k):
                row[j] = one[j] + _exp(_HALF * one[k + j]) * drawn[j]
        else:
            for j in range(k):
                row[j] = one[j] + deviation * drawn[j]


@part
def _step_rows(
    posterior_params,
    first,
    second,
    rows,
    z,
    grad_z,
    learned,
    log_var,
    weight,
    prior_mean,
    prior_precision,
    rate,
    taken,
):
    """Takes a step of the posteriors of a batch; see objective.posterior_gradients.

    Returns the sum of their divergences from N(0, I).
    """
    k = z.shape[1]
    grad = np.empty(posterior_params.shape[1], np.float32)
    pull, divergence, pace = np.float32(weight), 0.0, _pace(rate, taken, 0.0, True)
    rest = 0.0 if learned or log_var == -np.inf else k * (np.exp(log_var) - 1.0 - log_var)
    for r in range(len(rows)):
        row, drawn, slope = posterior_params[rows[r]], z[r], grad_z[r]
        own = np.float32(rest)
        for j in range(k):
            grad[j] = slope[j] + pull * (prior_precision[j] * (row[j] - prior_mean[j]))
            own += row[j] * row[j]
        if learned:
            for j in range(k):
                variance = _exp(row[k + j])
                grad[k + j] = _HALF * ((variance * prior_precision[j] - _ONE) * pull + slope[j] * (drawn[j] - row[j]))
                own += variance - _ONE - row[k + j]
        divergence += float(own)
        _adam(row, grad, first[rows[r]], second[rows[r]], pace)
    return 0.5 * divergence


@part
def _pace(rate, taken, decay, decoupled):
    """Returns what Adam's taken-th step is made of: its length, the correction of the second moment, what is kept of
    the parameters and what of them is added to the gradient; see optimiser.Adam and AdamW."""
    return (
        np.float32(rate / (1.0 - 0.9**taken)),
        np.float32(1.0 / np.sqrt(1.0 - 0.999**taken)),
        np.float32(1.0 - rate * decay if decoupled else 1.0),
        np.float32(0.0 if decoupled else decay),
    )


@part
def _adam(parameters, grad, first, second, pace):
    """Takes a step; see _pace."""
    length, correction, kept, added = pace
    for j in range(len(parameters)):
        slope = grad[j] + added * parameters[j]
        first[j] += (slope - first[j]) * (_ONE - _BETA1)
        second[j] = _BETA2 * second[j] + (_ONE - _BETA2) * slope * slope
        step = first[j] / (np.sqrt(second[j]) * correction + _EPS)
        parameters[j] = kept * parameters[j] - length * step


@inlined
def _exp(x):
    """Returns exp(x) without a branch, so that loops over it become vectors; beyond 80 it stays what it is there."""
    n, part = _powers(min(max(x, -_EXP_END), _EXP_END))
    return n * part + n


@inlined
def _tanh(x):
    """Returns tanh(x) = e / (e + 2) with e = exp(2x) - 1."""
    n, part = _powers(_TWO * min(max(x, -_TANH_END), _TANH_END))
    e = n * part + (n - _ONE)
    return e / (e + _TWO)


@inlined
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
