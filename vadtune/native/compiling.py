"""How functions here are compiled."""

from __future__ import annotations

from typing import Any

from numba import njit

# Sums may be taken in any order, so that loops use the whole vector width; NaN and infinity stay what they are.
HOW: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}

machine_code = njit(cache=True, nogil=True, **HOW)
"""Of what is called from Python; other threads run meanwhile."""
part = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **HOW)
"""Of what that calls, and is kept with it."""
inlined = njit(inline="always", **HOW)
"""Of what becomes part of the loops it stands in."""
