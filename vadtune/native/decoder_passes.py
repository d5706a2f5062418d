"""Forward and backward pass of a decoder over a batch, for the kernels in decoder_kernels.py.

Shape comments: b batch rows, d features, k latent dims, i inputs, o outputs, M network parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # loads the BLAS that np.dot calls, so that its threads can be limited
from numpy.typing import NDArray

from vadtune.native.compiling import helper, inlined

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_LOG2_E, _LN_2 = np.float32(1.44269504), np.float32(0.69314718)
_EXP_MAX, _TANH_MAX = np.float32(80.0), np.float32(10.0)  # beyond: exp as good as infinite, tanh is 1


class Shape(NamedTuple):
    """Shape of a decoder.

    Attributes:
        sizes: Widths from the latents to the features.
        tanh: Whether the activation is tanh; otherwise relu.
        skip: Whether a linear map from the latents is added to the output.
        learned_noise: Whether each feature has a learned observation noise; its d parameters come last in the weights.
    """

    sizes: Integers
    tanh: bool
    skip: bool
    learned_noise: bool


class Buffers(NamedTuple):
    """Working memory of the passes over one batch, and the offsets of each layer's weights and inputs."""

    weight_offsets: Integers  # of each layer's parameters: weight (i, o), then bias (o,); then of the skip
    input_offsets: Integers  # of each layer's input (b, i) in inputs
    inputs: Floats
    grads: Floats  # (2, ·): the gradients with respect to a layer's output and input, in turn
    skip: Floats  # the skip's part of the output, or of the gradient with respect to the latents
    unused_bias_grad: Floats


@helper
def new_buffers(sizes, b):
    """Returns memory for batches of b rows."""
    weight_offsets, input_offsets = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    for index in range(len(sizes) - 1):
        weight_offsets[index + 1] = weight_offsets[index] + (sizes[index] + 1) * sizes[index + 1]
        input_offsets[index + 1] = input_offsets[index] + b * sizes[index]
    inputs, widest = np.empty(input_offsets[-1], np.float32), sizes.max()
    grads, skip = np.empty((2, b * widest), np.float32), np.empty(b * widest, np.float32)
    return Buffers(weight_offsets, input_offsets, inputs, grads, skip, np.empty(widest, np.float32))


@helper
def decode(weights, shape, buffers, b):
    """Decodes the latents (b, k) at the start of buffers.inputs, where hidden layers are written, too.

    Returns the last layer's output (b, d) without its bias, in buffers.grads[0].
    """
    last, features = len(shape.sizes) - 2, shape.sizes[-1]
    out = matrix(buffers.grads[0], 0, b, features)
    for index in range(last + 1):
        i, o = shape.sizes[index], shape.sizes[index + 1]
        layer_input = matrix(buffers.inputs, buffers.input_offsets[index], b, i)
        weight = matrix(weights, buffers.weight_offsets[index], i, o)
        if index == last:
            np.dot(layer_input, weight, out)
        else:
            hidden = matrix(buffers.inputs, buffers.input_offsets[index + 1], b, o)
            np.dot(layer_input, weight, hidden)
            _activate(hidden, weights[buffers.weight_offsets[index] + i * o :], shape.tanh)
    if shape.skip:
        k = shape.sizes[0]
        weight, added = matrix(weights, buffers.weight_offsets[-1], k, features), matrix(buffers.skip, 0, b, features)
        np.dot(matrix(buffers.inputs, 0, b, k), weight, added)
        _add(out, added)
    return out


@helper
def decode_backward(weights, grad, shape, buffers, b):
    """Backpropagates the gradient (b, d) in buffers.grads[0] to the latents; returns that gradient (b, k).

    Writes the gradients of all parameters but the last bias to grad, unless that is empty.
    """
    last, k, features, learn = len(shape.sizes) - 2, shape.sizes[0], shape.sizes[-1], len(grad) > 0
    grad_out = matrix(buffers.grads[0], 0, b, features)
    grad_skip = matrix(buffers.skip, 0, b, k)
    if shape.skip:
        offset = buffers.weight_offsets[-1]
        if learn:
            np.dot(matrix(buffers.inputs, 0, b, k).T, grad_out, matrix(grad, offset, k, features))
        np.dot(grad_out, matrix(weights, offset, k, features).T, grad_skip)
    for index in range(last, -1, -1):
        i, o, offset = shape.sizes[index], shape.sizes[index + 1], buffers.weight_offsets[index]
        layer_input = matrix(buffers.inputs, buffers.input_offsets[index], b, i)
        if learn:
            np.dot(layer_input.T, grad_out, matrix(grad, offset, i, o))
        grad_input = matrix(buffers.grads[(last - index + 1) % 2], 0, b, i)
        np.dot(grad_out, matrix(weights, offset, i, o).T, grad_input)
        if index > 0:
            bias_grad = grad[offset - i : offset] if learn else buffers.unused_bias_grad
            _activate_backward(grad_input, layer_input, bias_grad, shape.tanh)
        grad_out = grad_input
    if shape.skip:
        _add(grad_out, grad_skip)
    return grad_out


@inlined
def matrix(memory, start, rows, columns):
    """Returns a matrix view of flat memory."""
    return memory[start : start + rows * columns].reshape(rows, columns)


@helper
def _add(out, added):
    for r in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[r, j] += added[r, j]


@helper
def _activate(out, bias, is_tanh):
    """Adds the bias to a hidden layer's matrix product (b, o) and applies the activation, in place."""
    for r in range(out.shape[0]):
        row = out[r]
        if is_tanh:
            for j in range(len(row)):
                row[j] = tanh(row[j] + bias[j])
        else:
            for j in range(len(row)):
                value = row[j] + bias[j]
                row[j] = value if not value <= 0 else ZERO  # keeps NaN


@helper
def _activate_backward(grad, activated, bias_grad, is_tanh):
    """Multiplies a gradient (b, o) by the activation's derivative, in place, and sums it over rows into bias_grad."""
    bias_grad[:] = 0
    for r in range(grad.shape[0]):
        row, values = grad[r], activated[r]
        if is_tanh:
            for j in range(len(row)):
                row[j] *= ONE - values[j] * values[j]
                bias_grad[j] += row[j]
        else:
            for j in range(len(row)):
                row[j] = ZERO if values[j] <= 0 else row[j]
                bias_grad[j] += row[j]


@inlined
def exp(x):
    """Computes the exponential without a branch, so that loops over it are vectorised; constant beyond ±80."""
    power, rest = _split_exp(min(max(x, -_EXP_MAX), _EXP_MAX))
    return power * rest + power


@inlined
def tanh(x):
    """Computes the hyperbolic tangent as e / (e + 2) with e = exp(2x) - 1."""
    power, rest = _split_exp(TWO * min(max(x, -_TANH_MAX), _TANH_MAX))
    e = power * rest + (power - ONE)
    return e / (e + TWO)


@inlined
def _split_exp(x):
    """Returns 2ⁿ and exp(r) - 1 where x = n log 2 + r: the first from its bits, the second by its Taylor series."""
    n = np.floor(x * _LOG2_E + HALF)
    r = x - n * _LN_2
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + HALF
    series = series * r + ONE
    return np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32), series * r
