"""Products of small matrices in machine code, for float32.

A BLAS is made for large matrices: with the few dozen rows and columns of the networks here it spends up to half of its
time on preparing. Here a product is made of tiles of the result, of ROWS × COLUMNS values that stay in registers, for
each of which a panel of the second matrix, so many columns of it, is laid out side by side first (Goto & van de Geijn
2008, ACM TOMS 34(3), without the blocks by which their method stays in the second cache). Each value is one sum
in order, so that it depends neither on the processor's vectors nor on what is computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vadtune.native.compiling import part
from vadtune.native.vectors import (
    BYTES,
    INTEGER,
    added_product,
    at,
    beyond,
    load,
    repeated,
    rows_from,
    shuffled,
    store,
    vector_of,
)

ROWS = 6
COLUMNS = 2 * BYTES // 4
"""Of a tile: ROWS times two vectors of sums, two of the second matrix and one of the first fill AVX2's registers."""
DEPTH = 8192 // BYTES
"""Rows of a panel, which then takes half of the first cache."""
_SQUARE = 8  # rows and columns that are turned at once

_POINTER = types.CPointer(types.float32)


@part
def scratch(rows):
    """Returns memory that ``multiply`` needs for results of up to so many rows."""
    return np.empty((DEPTH + rows) * COLUMNS, np.float32)


def _tile_of(rows: int) -> Any:
    """Returns the function that computes a tile of so many rows."""

    @intrinsic
    def tile(
        context: Any, one: Any, row: Any, step: Any, panel: Any, depth: Any, add: Any, out: Any, width: Any
    ) -> Any:
        """Writes one @ panel, (rows, COLUMNS), or adds it. Rows of the first matrix are ``row`` floats apart and its
        columns, of which there are ``depth`` > 0, ``step``; rows of the result are ``width`` floats apart."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            one, row, step, panel, depth, add, out, width = arguments
            nothing = ir.Constant(vector_of(ir.FloatType(), COLUMNS), [0.0] * COLUMNS)
            ones = [builder.mul(row, INTEGER(r)) for r in range(rows)]
            sums = [cgutils.alloca_once_value(builder, nothing) for _ in range(rows)]
            with builder.if_then(add):
                for total, target in zip(sums, rows_from(builder, out, width, rows), strict=True):
                    builder.store(load(builder, target, COLUMNS), total)
            with cgutils.for_range(builder, depth) as loop:
                here = builder.gep(one, [builder.mul(loop.index, step)])
                vector = load(builder, builder.gep(panel, [builder.mul(loop.index, INTEGER(COLUMNS))]), COLUMNS)
                for place, total in zip(ones, sums, strict=True):
                    value = repeated(builder, builder.load(builder.gep(here, [place])), COLUMNS)
                    builder.store(added_product(builder, value, vector, builder.load(total)), total)
            for total, target in zip(sums, rows_from(builder, out, width, rows), strict=True):
                store(builder, builder.load(total), target)
            return context.get_dummy_value()

        number = types.int64
        return types.void(_POINTER, number, number, _POINTER, number, types.boolean, _POINTER, number), generate

    return tile


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (_tile_of(rows) for rows in range(1, ROWS + 1))


@intrinsic
def _copy_row(context: Any, source: Any, out: Any) -> Any:
    """Copies COLUMNS floats."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        store(builder, load(builder, arguments[0], COLUMNS), arguments[1])
        return context.get_dummy_value()

    return types.void(_POINTER, _POINTER), generate


@intrinsic
def _turn(context: Any, source: Any, row: Any, out: Any) -> Any:
    """Writes the transpose of a square of which the rows are ``row`` floats apart into a panel."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, row, out = arguments
        half = _SQUARE // 2
        rows = [load(builder, place, _SQUARE) for place in rows_from(builder, source, row, _SQUARE)]
        # As often as 2 goes into the rows, each is shuffled like cards with the one half of them further on.
        decks = [[place for i in part for place in (i, i + _SQUARE)] for part in (range(half), range(half, _SQUARE))]
        for _ in range(_SQUARE.bit_length() - 1):
            rows = [shuffled(builder, rows[i], rows[i + half], deck) for i in range(half) for deck in decks]
        for vector, place in zip(rows, rows_from(builder, out, INTEGER(COLUMNS), _SQUARE), strict=True):
            store(builder, vector, place)
        return context.get_dummy_value()

    return types.void(_POINTER, types.int64, _POINTER), generate


@part
def multiply(one, turned_one, other, turned_other, rows, depth, columns, add, out, memory):
    """Writes the product of two matrices, (rows, depth) @ (depth, columns), or adds it to what is there.

    Args:
        one: Pointer to the first matrix, row by row.
        turned_one: Whether that is its transpose.
        other: Pointer to the second.
        turned_other: Whether that is its transpose.
        rows: Of the result.
        depth: Terms of every sum.
        columns: Of the result.
        add: Whether it is added.
        out: Pointer to the result (rows, columns).
        memory: See ``scratch``.
    """
    row, step = (1, rows) if turned_one else (depth, 1)
    panel, edge = at(memory, 0), at(memory, DEPTH * COLUMNS)
    for begin in range(0, depth, DEPTH):
        deep, more = min(DEPTH, depth - begin), add or begin > 0
        for first in range(0, columns, COLUMNS):
            wide = min(COLUMNS, columns - first)
            if turned_other:
                _pack_turned(beyond(other, first * depth + begin), depth, deep, wide, panel)
            else:
                _pack(beyond(other, begin * columns + first), columns, deep, wide, panel)
            here, target = beyond(one, begin * step), beyond(out, first)
            if wide == COLUMNS:
                _column(here, row, step, panel, deep, rows, more, target, columns)
                continue
            if more:
                _copy(target, columns, edge, COLUMNS, rows, wide)
            _column(here, row, step, panel, deep, rows, more, edge, COLUMNS)
            _copy(edge, COLUMNS, target, columns, rows, wide)


@part
def _copy(source, width, target, target_width, rows, columns):
    """Copies a matrix between places where its rows are so many floats apart."""
    for r in range(rows):
        for j in range(columns):
            target[r * target_width + j] = source[r * width + j]


@part
def _column(one, row, step, panel, depth, rows, add, out, width):
    """Computes the tiles of a panel, of about equally many rows."""
    for left in range(-(-rows // ROWS), 0, -1):
        high = -(-rows // left)
        if high == 6:
            _tile_6(one, row, step, panel, depth, add, out, width)
        elif high == 5:
            _tile_5(one, row, step, panel, depth, add, out, width)
        elif high == 4:
            _tile_4(one, row, step, panel, depth, add, out, width)
        elif high == 3:
            _tile_3(one, row, step, panel, depth, add, out, width)
        elif high == 2:
            _tile_2(one, row, step, panel, depth, add, out, width)
        else:
            _tile_1(one, row, step, panel, depth, add, out, width)
        rows -= high
        one, out = beyond(one, high * row), beyond(out, high * width)


@part
def _pack(other, row, deep, wide, panel):
    """Lays a panel out, from rows that are ``row`` floats apart; what it lacks in columns is 0."""
    for k in range(deep):
        if wide == COLUMNS:
            _copy_row(beyond(other, k * row), beyond(panel, k * COLUMNS))
        else:
            for j in range(COLUMNS):
                panel[k * COLUMNS + j] = other[k * row + j] if j < wide else np.float32(0.0)


@part
def _pack_turned(other, column, deep, wide, panel):
    """The same from columns that are ``column`` floats apart."""
    squares, whole = deep // _SQUARE * _SQUARE, wide // _SQUARE * _SQUARE
    for j in range(0, whole, _SQUARE):
        for k in range(0, squares, _SQUARE):
            _turn(beyond(other, j * column + k), column, beyond(panel, k * COLUMNS + j))
    for j in range(COLUMNS):
        for k in range(squares if j < whole else 0, deep):
            panel[k * COLUMNS + j] = other[j * column + k] if j < wide else np.float32(0.0)
