"""Pointers and vectors in the language of the compiler behind Numba (LLVM).

They are for loops whose sums have to stay in registers, which compiling loops over arrays does not ensure. Functions
with a builder write instructions and are called while compiling; intrinsics are called from machine code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

BYTES = 64 if "+avx512f" in get_host_cpu_features().split(",") else 32
"""Of a vector that processors here have; NEON's and SSE's, half as long, are taken two at a time."""
INTEGER = ir.IntType(64)
_PLACE = ir.IntType(32)
_FUSED = ("contract",)  # a product and a sum are rounded once


@intrinsic
def at(context: Any, array: Any, index: Any) -> Any:
    """Returns a pointer into a contiguous array. Arrays as arguments cost more than a small tile of a product."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(array.data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.int64), generate


@intrinsic
def beyond(context: Any, pointer: Any, count: Any) -> Any:
    """Returns a pointer to so many numbers further on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), generate


def vector_of(number: Any, count: int) -> Any:
    """Returns the type of a vector."""
    return ir.VectorType(number, count)


def load(builder: Any, pointer: Any, count: int) -> Any:
    """Returns the vector at a pointer."""
    return builder.load(builder.bitcast(pointer, vector_of(pointer.type.pointee, count).as_pointer()), align=4)


def store(builder: Any, vector: Any, pointer: Any) -> None:
    """Writes a vector to a pointer."""
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=4)


def shuffled(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    """Returns the vector of these places of two vectors, one after the other."""
    return builder.shuffle_vector(one, other, ir.Constant(vector_of(_PLACE, len(places)), list(places)))


def repeated(builder: Any, value: Any, count: int) -> Any:
    """Returns a vector of so many times a value."""
    nothing = ir.Constant(vector_of(value.type, count), ir.Undefined)
    return shuffled(builder, builder.insert_element(nothing, value, _PLACE(0)), nothing, [0] * count)


def added_product(builder: Any, one: Any, other: Any, total: Any) -> Any:
    """Returns one · other + total."""
    return builder.fadd(builder.fmul(one, other, flags=_FUSED), total, flags=_FUSED)


def less_product(builder: Any, one: Any, other: Any, total: Any) -> Any:
    """Returns total - one · other."""
    return builder.fsub(total, builder.fmul(one, other, flags=_FUSED), flags=_FUSED)


def rows_from(builder: Any, pointer: Any, width: Any, count: int) -> list[Any]:
    """Returns pointers to rows that are ``width`` numbers apart."""
    return [builder.gep(pointer, [builder.mul(width, INTEGER(r))]) for r in range(count)]
