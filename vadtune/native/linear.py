"""Posteriors under a linear decoder, in machine code: the sums over rows that expectation-maximisation needs.

See model/linear.py for the mathematics. Every row has a small system of its own. Libraries solve them one after the
other, at a fraction of the processor's speed; here LANES rows are solved side by side, each number being a vector. As
in products.py, what takes the time is done in tiles whose sums stay in registers. For these the systems are as large
as the next multiple of SIDE, with latents that have no part in anything.

Shape comments: n rows, d features, k latent dimensions, K of them with those that fill up, v lanes; t = k (k + 1) / 2,
and u = (k + 1) (k + 2) / 2 of z̃ = (z, 1), of symmetric matrices the lower half, row after row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # loaded now rather than at the first product, so that its threads can be set
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from vadtune.native.compiling import machine_code, part
from vadtune.native.vectors import BYTES, INTEGER, at, less_product, load, rows_from, store, vector_of

Doubles = NDArray[np.float64]

LANES = BYTES // 8
BLOCK = 64
"""Rows whose moments are summed in one product."""
SIDE = 4
"""Columns of a tile, which has half as many rows: eight vectors of sums."""

_POINTER = types.CPointer(types.float64)


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
    wide = -(-k // SIDE) * SIDE
    systems, inverses = np.zeros((wide, wide, LANES)), np.zeros((wide, wide, LANES))
    mean, reciprocal = np.zeros((wide, LANES)), np.empty((wide, LANES))
    moments, product = np.empty((len(second), BLOCK)), np.empty((len(second), features))
    crossed = np.empty((features, k + 1))

    for start in range(0, n, BLOCK):
        _fill(x, mask, start, seen, values)
        np.dot(outer, seen.T, precisions)
        _centre(seen, values, bias, centred)
        np.dot(scaled, centred.T, pulls)
        for first in range(0, BLOCK, LANES):
            live = min(LANES, n - start - first)  # the others observe nothing
            _take(precisions, pulls, first, prior_precision, prior_pull, systems, mean)
            if not _factor(systems, reciprocal):
                return np.nan
            _solve(systems, reciprocal, mean)
            for v in range(live):
                for i in range(k):
                    means[start + first + v, i] = mean[i, v]
                    log_det -= 2.0 * np.log(reciprocal[i, v])
            if learn:
                for v in range(LANES):
                    for i in range(k):
                        extended[first + v, i] = mean[i, v]
                    extended[first + v, k] = 1.0
                _invert(systems, reciprocal, inverses)
                _moments(inverses, mean, k, first, systems, moments)
        if learn:
            np.dot(moments, seen, product)
            np.dot(values.T, extended, crossed)
            for row in range(len(second)):
                for f in range(features):
                    second[row, f] += product[row, f]
                for v in range(min(BLOCK, n - start)):
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
def _take(precisions, pulls, first, prior_precision, prior_pull, systems, mean):
    """Takes the systems of some rows, A (K, K, v) and A times the posterior mean (K, v), from those of a block."""
    k = len(pulls)
    for i in range(len(systems)):
        for j in range(i + 1):
            for v in range(LANES):
                systems[i, j, v] = precisions[i * (i + 1) // 2 + j, first + v] if i < k else 0.0
        for v in range(LANES):
            systems[i, i, v] += prior_precision[i] if i < k else 1.0
            mean[i, v] = pulls[i, first + v] + prior_pull[i] if i < k else 0.0


def _tile_of(rows: int, columns: int) -> Any:
    """Returns the function that computes a tile of so many rows and columns."""

    @intrinsic
    def tile(context: Any, one: Any, other: Any, depth: Any, width: Any, anew: Any, out: Any) -> Any:
        """Subtracts the products of rows of two matrices of vectors, their first ``depth`` columns, from a third, or
        from 0: out - one @ otherᵀ. Rows of all three are ``width`` vectors apart."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            one, other, depth, width, anew, out = arguments
            nothing = ir.Constant(vector_of(ir.DoubleType(), LANES), [0.0] * LANES)
            width = builder.mul(width, INTEGER(LANES))
            targets = [
                builder.gep(row, [INTEGER(LANES * c)])
                for row in rows_from(builder, out, width, rows)
                for c in range(columns)
            ]
            places = rows_from(builder, one, width, rows) + rows_from(builder, other, width, columns)
            sums = [cgutils.alloca_once_value(builder, nothing) for _ in targets]
            with builder.if_then(builder.not_(anew)):
                for total, target in zip(sums, targets, strict=True):
                    builder.store(load(builder, target, LANES), total)
            with cgutils.for_range(builder, depth) as loop:
                shift = builder.mul(loop.index, INTEGER(LANES))
                values = [load(builder, builder.gep(place, [shift]), LANES) for place in places]
                pairs = [(values[r], values[rows + c]) for r in range(rows) for c in range(columns)]
                for total, pair in zip(sums, pairs, strict=True):
                    builder.store(less_product(builder, *pair, builder.load(total)), total)
            for total, target in zip(sums, targets, strict=True):
                store(builder, builder.load(total), target)
            return context.get_dummy_value()

        number = types.int64
        return types.void(_POINTER, _POINTER, number, number, types.boolean, _POINTER), generate

    return tile


_tile, _single = _tile_of(SIDE // 2, SIDE), _tile_of(1, 1)


@intrinsic
def _finish(context: Any, row: Any, factor: Any, width: Any, reciprocal: Any) -> Any:
    """Solves y @ factorᵀ = row, in place, for a row of SIDE vectors and a lower triangular factor of as many rows,
    which are ``width`` vectors apart; of its diagonal the reciprocals are given."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        row, factor, width, reciprocal = arguments
        rows = rows_from(builder, factor, builder.mul(width, INTEGER(LANES)), SIDE)
        solved: list[Any] = []
        for c in range(SIDE):
            value = load(builder, builder.gep(row, [INTEGER(LANES * c)]), LANES)
            for p, before in enumerate(solved):
                other = load(builder, builder.gep(rows[c], [INTEGER(LANES * p)]), LANES)
                value = less_product(builder, before, other, value)
            scale = load(builder, builder.gep(reciprocal, [INTEGER(LANES * c)]), LANES)
            solved.append(builder.fmul(value, scale))
        for c, value in enumerate(solved):
            store(builder, value, builder.gep(row, [INTEGER(LANES * c)]))
        return context.get_dummy_value()

    return types.void(_POINTER, _POINTER, types.int64, _POINTER), generate


@part
def _factor(systems, reciprocal):
    """Turns matrices (K, K, v) into their Cholesky factors, in the lower half; the reciprocals of the diagonals go to
    (K, v).

    Returns whether all are positive definite.
    """
    wide, good = len(systems), True
    for j in range(0, wide, SIDE):
        for i in range(j, wide, SIDE // 2):
            _tile(_place(systems, i, 0), _place(systems, j, 0), j, wide, False, _place(systems, i, j))
        for i in range(j, j + SIDE):
            for c in range(j, i + 1):
                _single(_place(systems, i, j), _place(systems, c, j), c - j, wide, False, _place(systems, i, c))
                for v in range(LANES):
                    if c < i:
                        systems[i, c, v] *= reciprocal[c, v]
                    else:
                        good = good and systems[i, i, v] > 0
                        systems[i, i, v] = np.sqrt(systems[i, i, v])
                        reciprocal[i, v] = 1.0 / systems[i, i, v]
        for i in range(j + SIDE, wide):
            _finish(_place(systems, i, j), _place(systems, j, j), wide, at(reciprocal, j * LANES))
    return good


@part
def _place(matrices, i, j):
    return at(matrices, (i * matrices.shape[1] + j) * LANES)


@part
def _solve(factors, reciprocal, right):
    """Solves the systems of which these are the factors for right sides (K, v), in place."""
    wide = len(right)
    for i in range(wide):
        _single(_place(factors, i, 0), at(right, 0), i, wide, False, at(right, i * LANES))
        for v in range(LANES):
            right[i, v] *= reciprocal[i, v]
    for i in range(wide - 1, -1, -1):
        for v in range(LANES):
            right[i, v] *= reciprocal[i, v]
        for j in range(i):
            _single(_place(factors, i, j), at(right, i * LANES), 1, wide, False, at(right, j * LANES))


@part
def _invert(factors, reciprocal, inverses):
    """Writes the transposes of the inverses of factors, (K, K, v)."""
    wide = len(factors)
    for i in range(0, wide, SIDE):
        for j in range(0, i, SIDE):
            for row in (j, j + SIDE // 2):
                _tile(_place(inverses, row, j), _place(factors, i, j), i - j, wide, True, _place(inverses, row, i))
        for j in range(i, i + SIDE):
            for c in range(i, i + SIDE):
                for v in range(LANES):
                    inverses[j, c, v] = 1.0 if c == j else 0.0
        for j in range(i + SIDE):
            _finish(_place(inverses, j, i), _place(factors, i, i), wide, at(reciprocal, i * LANES))


@part
def _moments(inverses, mean, k, first, room, moments):
    """Writes E[z̃ z̃ᵀ] (u, v) of posteriors of these means (K, v) to their place in a block, given the transposed
    inverses of their factors."""
    wide = len(mean)
    for i in range(0, wide, SIDE // 2):
        start = i // SIDE * SIDE  # before that the inverses are 0
        for j in range(0, i + 1, SIDE):
            one, other = _place(inverses, i, start), _place(inverses, j, start)
            _tile(one, other, wide - start, wide, True, _place(room, i, j))  # less the covariance
    for i in range(k):
        for j in range(i + 1):
            for v in range(LANES):
                moments[i * (i + 1) // 2 + j, first + v] = mean[i, v] * mean[j, v] - room[i, j, v]
    row = k * (k + 1) // 2
    for v in range(LANES):
        for j in range(k):
            moments[row + j, first + v] = mean[j, v]
        moments[row + k, first + v] = 1.0
