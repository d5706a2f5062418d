"""Posteriors under a linear decoder, in machine code: the sums over rows that expectation-maximisation needs.

See model/linear.py for the mathematics. Every row has a small system of its own. Libraries solve them one after the
other, at a fraction of the processor's speed; here LANES rows are solved side by side, each step of the elimination
being one step of a vector. Of symmetric matrices the lower half is kept, row after row.

Shape comments: n rows, d features, k latent dimensions; t = k (k + 1) / 2, and u = (k + 1) (k + 2) / 2 of z̃ = (z, 1).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # loaded now rather than at the first product, so that its threads can be set
from numpy.typing import NDArray

from vadtune.native.compiling import inlined, machine_code, part

Doubles = NDArray[np.float64]

LANES = 16
BLOCK = 4 * LANES
"""Rows whose moments are summed in one product."""


@machine_code
def posteriors(
    x: Doubles,
    mask: Doubles,
    outer: Doubles,
    scaled: Doubles,
    bias: Doubles,
    prior_pull: Doubles,
    prior_precision: Doubles,
    means: Doubles,
    second: Doubles,
    cross: Doubles,
    squares: Doubles,
    spread: Doubles,
) -> float:
    """Finds the posteriors of rows, and the sums of their moments.

    Args:
        x: The rows (n, d), with 0 in place of missing cells.
        mask: (n, d), 1 = observed.
        outer: What each feature adds to a row's precision, (t, d).
        scaled: The decoder's weights in units of the noise (k, d).
        bias: Of the decoder (d,).
        prior_pull: The prior's precision times its mean (k,).
        prior_precision: (k,).
        means: The posterior means (n, k) are written here.
        second: To E[z̃ z̃ᵀ] over the rows that observe each feature it is added (u, d); no sums are taken if it is
            empty.
        cross: Likewise to x E[z̃] (d, k + 1).
        squares: Likewise to x² (d,).
        spread: Likewise to E[z̃ z̃ᵀ] over all rows (u,).

    Returns:
        The sum of log |A| over the rows; NaN where a system cannot be solved.
    """
    n, features, k = len(x), x.shape[1], len(scaled)
    learn, log_det = len(second) > 0, 0.0
    seen, values = np.empty((BLOCK, features)), np.empty((BLOCK, features))
    centred, extended = np.empty((BLOCK, features)), np.empty((BLOCK, k + 1))
    precisions, pulls = np.empty((len(outer), BLOCK)), np.empty((k, BLOCK))
    systems, inverses = np.empty((len(outer), LANES)), np.empty((len(outer), LANES))
    mean, reciprocal, sums = np.empty((k, LANES)), np.empty((k, LANES)), np.empty(LANES)
    moments, product = np.empty((len(second), BLOCK)), np.empty((len(second), features))
    crossed = np.empty((features, k + 1))

    for start in range(0, n, BLOCK):
        _fill(x, mask, start, seen, values)
        np.dot(outer, seen.T, precisions)
        _centre(seen, values, bias, centred)
        np.dot(scaled, centred.T, pulls)
        for first in range(0, BLOCK, LANES):
            live = min(LANES, n - start - first)  # the others observe nothing, and are not counted
            _take(precisions, first, systems)
            _take(pulls, first, mean)
            for i in range(k):
                for v in range(LANES):
                    mean[i, v] += prior_pull[i]
                    systems[i * (i + 1) // 2 + i, v] += prior_precision[i]
            if not _factor(systems, reciprocal):
                return np.nan
            _solve(systems, reciprocal, mean, sums)
            for v in range(live):
                for i in range(k):
                    means[start + first + v, i] = mean[i, v]
                    log_det -= 2.0 * np.log(reciprocal[i, v])
            if learn:
                for v in range(LANES):
                    for i in range(k):
                        extended[first + v, i] = mean[i, v] if v < live else 0.0
                    extended[first + v, k] = 1.0 if v < live else 0.0
                _invert(systems, reciprocal, inverses)
                _moments(inverses, mean, live, first, moments, sums)
        if learn:
            np.dot(moments, seen, product)
            np.dot(values.T, extended, crossed)
            for row in range(len(second)):
                for f in range(features):
                    second[row, f] += product[row, f]
                for v in range(BLOCK):
                    spread[row] += moments[row, v]
            for f in range(features):
                for i in range(k + 1):
                    cross[f, i] += crossed[f, i]
                for v in range(BLOCK):
                    squares[f] += values[v, f] * values[v, f]
    return log_det


@part
def _fill(x, mask, start, seen, values):
    """Takes a block of rows, those beyond the last as observing nothing."""
    for r in range(BLOCK):
        for f in range(x.shape[1]):
            seen[r, f] = mask[start + r, f] if start + r < len(x) else 0.0
            values[r, f] = x[start + r, f] * seen[r, f] if start + r < len(x) else 0.0


@part
def _centre(seen, values, bias, centred):
    for r in range(BLOCK):
        for f in range(len(bias)):
            centred[r, f] = values[r, f] - bias[f] * seen[r, f]


@part
def _take(block, first, lanes):
    """Takes some columns of a matrix, so that they lie side by side."""
    for i in range(len(block)):
        for v in range(LANES):
            lanes[i, v] = block[i, first + v]


@part
def _factor(systems, reciprocal):
    """Turns matrices (t, lanes) into their Cholesky factors; the reciprocals of the diagonals go to (k, lanes).

    Returns whether all are positive definite.
    """
    good = True
    for i in range(len(reciprocal)):
        row = i * (i + 1) // 2
        for j in range(i + 1):
            target, other = systems[row + j], j * (j + 1) // 2
            _subtract(target, systems, row, systems, other, j)
            scale = reciprocal[j]
            if j < i:
                for v in range(LANES):
                    target[v] *= scale[v]
            else:
                for v in range(LANES):
                    good = good and target[v] > 0
                    target[v] = np.sqrt(target[v])
                    scale[v] = 1.0 / target[v]
    return good


@part
def _solve(factors, reciprocal, right, sums):
    """Solves the systems of which these are the factors for right sides (k, lanes), in place."""
    k = len(reciprocal)
    for i in range(k):
        _subtract(right[i], factors, i * (i + 1) // 2, right, 0, i)
        for v in range(LANES):
            right[i, v] *= reciprocal[i, v]
    for i in range(k - 1, -1, -1):
        for v in range(LANES):
            sums[v] = right[i, v]
        for j in range(i + 1, k):
            for v in range(LANES):
                sums[v] -= factors[j * (j + 1) // 2 + i, v] * right[j, v]
        for v in range(LANES):
            right[i, v] = sums[v] * reciprocal[i, v]


@part
def _invert(factors, reciprocal, inverses):
    """Writes the inverses of factors (t, lanes), column after column."""
    k = len(reciprocal)
    for j in range(k):
        column = j * k - j * (j - 1) // 2
        for v in range(LANES):
            inverses[column, v] = reciprocal[j, v]
        for i in range(j + 1, k):
            target = inverses[column + i - j]
            for v in range(LANES):
                target[v] = 0.0
            _subtract(target, factors, i * (i + 1) // 2 + j, inverses, column, i - j)
            for v in range(LANES):
                target[v] *= reciprocal[i, v]


@part
def _moments(inverses, mean, live, first, moments, sums):
    """Writes E[z̃ z̃ᵀ] (u, lanes) of posteriors of these means (k, lanes), given the inverses of their factors."""
    k = len(mean)
    for i in range(k):
        one = i * k - i * (i - 1) // 2
        for j in range(i + 1):
            for v in range(LANES):
                sums[v] = 0.0  # less the covariance
            _subtract(sums, inverses, one, inverses, j * k - j * (j - 1) // 2 + i - j, k - i)
            for v in range(LANES):
                moments[i * (i + 1) // 2 + j, first + v] = mean[i, v] * mean[j, v] - sums[v] if v < live else 0.0
    row = k * (k + 1) // 2
    for v in range(LANES):
        for j in range(k):
            moments[row + j, first + v] = mean[j, v] if v < live else 0.0
        moments[row + k, first + v] = 1.0 if v < live else 0.0


@inlined
def _subtract(target, one, i, other, j, count):
    """Subtracts the products of so many rows of two matrices, from the i-th and the j-th on, four at a time."""
    p = 0
    while p + 4 <= count:
        a, b, c, d = one[i + p], one[i + p + 1], one[i + p + 2], one[i + p + 3]
        e, f, g, h = other[j + p], other[j + p + 1], other[j + p + 2], other[j + p + 3]
        for v in range(LANES):
            target[v] -= (a[v] * e[v] + b[v] * f[v]) + (c[v] * g[v] + d[v] * h[v])
        p += 4
    while p < count:
        a, e = one[i + p], other[j + p]
        for v in range(LANES):
            target[v] -= a[v] * e[v]
        p += 1
