"""Products of small matrices in machine code: whatever the shapes, they are numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from vadtune.native.compiling import HOW
from vadtune.native.products import COLUMNS, DEPTH, ROWS, multiply, scratch
from vadtune.native.vectors import at

Floats = NDArray[np.float32]

_GUARD, _MARK = 64, np.float32(12345.0)


@njit(**HOW)  # type: ignore[untyped-decorator]
def _multiply(
    one: Floats, turned_one: bool, other: Floats, turned_other: bool, depth: int, add: bool, out: Floats
) -> bool:
    """Returns whether what lies around the result and behind the memory it may use is as it was."""
    rows, columns = out.shape
    around = np.full(out.size + 2 * _GUARD, _MARK)
    around[_GUARD:-_GUARD] = out.ravel()
    needed = scratch(rows)
    room = np.full(len(needed) + _GUARD, _MARK)
    multiply(at(one, 0), turned_one, at(other, 0), turned_other, rows, depth, columns, add, at(around, _GUARD), room)
    out[:] = around[_GUARD:-_GUARD].reshape(out.shape)
    return (
        (around[:_GUARD] == _MARK).all() and (around[-_GUARD:] == _MARK).all() and (room[len(needed) :] == _MARK).all()
    )


def product(one: Floats, other: Floats, turned_one: bool, turned_other: bool, out: Floats | None = None) -> Floats:
    """Returns one @ other, or adds it to ``out``; the factors that are turned are given as their transposes."""
    result = np.full((len(one), other.shape[1]), np.nan, np.float32) if out is None else out.copy()
    given = [np.ascontiguousarray(m.T if turned else m) for m, turned in ((one, turned_one), (other, turned_other))]
    assert _multiply(given[0], turned_one, given[1], turned_other, one.shape[1], out is not None, result)
    return result


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


SIZES = st.one_of(st.integers(1, 40), st.sampled_from([COLUMNS, 2 * COLUMNS, ROWS, 64, 100]))
DEPTHS = st.one_of(SIZES, st.sampled_from([DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 9]))


@settings(deadline=None, max_examples=200)
@given(SIZES, DEPTHS, SIZES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 9))
def test_products_are_those_of_numpy(
    rows: int, depth: int, columns: int, turned_one: bool, turned_other: bool, add: bool, seed: int
) -> None:
    one, other, before = matrices((rows, depth), (depth, columns), (rows, columns), seed=seed)
    found = product(one, other, turned_one, turned_other, before if add else None)
    expected = one.astype(np.float64) @ other + (before if add else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * depth)


@pytest.mark.parametrize("turned", [False, True])
def test_a_value_does_not_hang_on_the_rest_of_the_product(turned: bool) -> None:
    """So that a configuration's result is the same whatever is computed beside it."""
    one, other = matrices((50, 300), (300, 3 * COLUMNS + 5))
    whole = product(one, other, False, turned)
    for rows, columns in ((1, 1), (7, COLUMNS), (13, COLUMNS + 3)):
        np.testing.assert_array_equal(product(one[:rows], other[:, :columns], False, turned), whole[:rows, :columns])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_row_and_column(bad: float) -> None:
    one, other = matrices((9, 20), (20, 21))
    one[4, 7] = bad
    found: Any = np.isfinite(product(one, other, False, False))
    assert not found[4].any()
    assert np.delete(found, 4, axis=0).all()
