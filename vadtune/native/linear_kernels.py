"""Kernel for linear decoders: the Gaussian posterior of each row, and the sums over rows that EM needs.

The equations are in models/linear_em.py. Each row has a (k, k) system. Libraries factorise such small systems one
after the other, far below the processor's speed; here LANES rows are factorised in parallel: every number of the
algorithm is a vector over rows. Symmetric and triangular matrices keep their lower half, row after row.

Shape comments: n rows, v lanes, d features, k latent dims; t = k (k + 1) / 2 entries of a lower half, u = (k + 1) (k +
2) / 2 of that of z̃ = (z, 1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # loads the BLAS that np.dot calls, so that its threads can be limited
from numpy.typing import NDArray

from vadtune.native.compiling import helper, inlined, kernel

Doubles = NDArray[np.float64]

LANES = 32
"""Rows that are factorised in parallel."""


class Model(NamedTuple):
    """A linear decoder and the prior of its latents.

    Attributes:
        outer: What each feature adds to the precision of a row that observes it, (t, d).
        scaled: Weights divided by each feature's noise variance (k, d).
        bias: (d,).
        prior_shift: The prior's precision times its mean (k,).
        prior_precision: Of the prior, diagonal, (k,).
    """

    outer: Doubles
    scaled: Doubles
    bias: Doubles
    prior_shift: Doubles
    prior_precision: Doubles


class Sums(NamedTuple):
    """Sums over rows; all empty if none are wanted.

    Attributes:
        second: E[z̃ z̃ᵀ] over the rows that observe each feature (u, d).
        cross: x E[z̃] likewise (d, k + 1).
        squares: x² likewise (d,).
        spread: E[z̃ z̃ᵀ] over all rows (u,).
    """

    second: Doubles
    cross: Doubles
    squares: Doubles
    spread: Doubles


def _example() -> tuple[Any, ...]:
    """Returns arguments of the types that all calls of the kernel have."""
    matrix, vector = np.zeros((1, 1)), np.zeros(1)
    return matrix, matrix, Model(matrix, matrix, vector, vector, vector), matrix, Sums(matrix, matrix, vector, vector)


@kernel(_example)
def posteriors(x: Doubles, mask: Doubles, model: Model, means: Doubles, sums: Sums) -> float:
    """Computes the posterior means of rows and adds their moments to sums.

    Args:
        x: The rows (n, d), 0 where missing.
        mask: (n, d), 1 = observed.
        model: Decoder and prior.
        means: The posterior means (n, k) are written here.
        sums: The moments are added here.

    Returns:
        The sum of log |A| over the rows, A being a posterior's precision; NaN if one is not positive definite.
    """
    n, features, k = len(x), x.shape[1], len(model.scaled)
    learn, log_det = len(sums.second) > 0, 0.0
    observed, values = np.empty((LANES, features)), np.empty((LANES, features))
    centred, extended = np.empty((LANES, features)), np.empty((LANES, k + 1))
    factors, inverses = np.empty((len(model.outer), LANES)), np.empty((len(model.outer), LANES))
    mean, reciprocal, total = np.empty((k, LANES)), np.empty((k, LANES)), np.empty(LANES)
    moments, second = np.zeros((len(sums.second), LANES)), np.empty(sums.second.shape)
    cross = np.empty((features, k + 1))

    for start in range(0, n, LANES):
        live = min(LANES, n - start)  # lanes beyond the last row observe nothing and are not summed
        for v in range(LANES):
            for f in range(features):
                observed[v, f] = mask[start + v, f] if v < live else 0.0
                values[v, f] = x[start + v, f] * observed[v, f] if v < live else 0.0
                centred[v, f] = values[v, f] - model.bias[f] * observed[v, f]
        np.dot(model.outer, observed.T, factors)
        np.dot(model.scaled, centred.T, mean)
        for i in range(k):
            for v in range(LANES):
                mean[i, v] += model.prior_shift[i]
                factors[_entry(i, i), v] += model.prior_precision[i]
        if not _cholesky(factors, reciprocal):
            return np.nan
        _solve(factors, reciprocal, mean, total)
        for v in range(live):
            for i in range(k):
                means[start + v, i] = mean[i, v]
                log_det -= 2.0 * np.log(reciprocal[i, v])
        if learn:
            for v in range(LANES):
                for i in range(k):
                    extended[v, i] = mean[i, v] if v < live else 0.0
                extended[v, k] = 1.0 if v < live else 0.0
            _invert(factors, reciprocal, inverses)
            _moments(inverses, mean, live, moments, total)
            np.dot(moments, observed, second)
            np.dot(values.T, extended, cross)
            for row in range(len(second)):
                for f in range(features):
                    sums.second[row, f] += second[row, f]
                for v in range(live):
                    sums.spread[row] += moments[row, v]
            for f in range(features):
                for i in range(k + 1):
                    sums.cross[f, i] += cross[f, i]
                for v in range(live):
                    sums.squares[f] += values[v, f] * values[v, f]
    return log_det


@inlined
def _entry(i, j):
    """Returns the position of entry (i, j), j ≤ i, in a lower half."""
    return i * (i + 1) // 2 + j


@helper
def _cholesky(systems, reciprocal):
    """Replaces matrices (t, v) by their Cholesky factors and writes the reciprocals of the diagonals (k, v).

    Returns whether all are positive definite.
    """
    definite = True
    for i in range(len(reciprocal)):
        for j in range(i + 1):
            target, scale = systems[_entry(i, j)], reciprocal[j]
            _subtract_dot(target, systems, _entry(i, 0), systems, _entry(j, 0), j)
            if j < i:
                for v in range(LANES):
                    target[v] *= scale[v]
            else:
                for v in range(LANES):
                    definite = definite and target[v] > 0
                    target[v] = np.sqrt(target[v])
                    scale[v] = 1.0 / target[v]
    return definite


@helper
def _solve(factors, reciprocal, right, total):
    """Solves L Lᵀ z = right for right sides (k, v), in place, by forward and backward substitution."""
    k = len(reciprocal)
    for i in range(k):
        _subtract_dot(right[i], factors, _entry(i, 0), right, 0, i)
        for v in range(LANES):
            right[i, v] *= reciprocal[i, v]
    for i in range(k - 1, -1, -1):
        for v in range(LANES):
            total[v] = right[i, v]
        for j in range(i + 1, k):
            for v in range(LANES):
                total[v] -= factors[_entry(j, i), v] * right[j, v]
        for v in range(LANES):
            right[i, v] = total[v] * reciprocal[i, v]


@helper
def _invert(factors, reciprocal, inverses):
    """Writes the inverses of factors (t, v), column after column."""
    k = len(reciprocal)
    for j in range(k):
        column = j * k - j * (j - 1) // 2
        for v in range(LANES):
            inverses[column, v] = reciprocal[j, v]
        for i in range(j + 1, k):
            target = inverses[column + i - j]
            target[:] = 0.0
            _subtract_dot(target, factors, _entry(i, j), inverses, column, i - j)
            for v in range(LANES):
                target[v] *= reciprocal[i, v]


@helper
def _moments(inverses, mean, live, moments, total):
    """Writes E[z̃ z̃ᵀ] (u, v) of posteriors with means (k, v) and covariances L⁻ᵀ L⁻¹, given the columns of L⁻¹."""
    k = len(mean)
    for i in range(k):
        column = i * k - i * (i - 1) // 2
        for j in range(i + 1):
            total[:] = 0.0  # minus the covariance
            _subtract_dot(total, inverses, column, inverses, j * k - j * (j - 1) // 2 + i - j, k - i)
            for v in range(live):
                moments[_entry(i, j), v] = mean[i, v] * mean[j, v] - total[v]
    for v in range(LANES):
        for j in range(k):
            moments[_entry(k, j), v] = mean[j, v] if v < live else 0.0
        moments[_entry(k, k), v] = 1.0 if v < live else 0.0


@inlined
def _subtract_dot(target, a, i, b, j, count):
    """Subtracts Σ_p a[i + p] · b[j + p] over count rows of a and b from target (v,), four terms at a time."""
    p = 0
    while p + 4 <= count:
        a0, a1, a2, a3 = a[i + p], a[i + p + 1], a[i + p + 2], a[i + p + 3]
        b0, b1, b2, b3 = b[j + p], b[j + p + 1], b[j + p + 2], b[j + p + 3]
        for v in range(LANES):
            target[v] -= (a0[v] * b0[v] + a1[v] * b1[v]) + (a2[v] * b2[v] + a3[v] * b3[v])
        p += 4
    while p < count:
        a0, b0 = a[i + p], b[j + p]
        for v in range(LANES):
            target[v] -= a0[v] * b0[v]
        p += 1
