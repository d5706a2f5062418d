"""How functions here are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from vadtune.native import state

# Sums may be taken in any order, so that loops use the whole vector width; NaN and infinity stay what they are.
HOW: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


def machine_code(function: Callable[..., Any]) -> Any:
    """Compiles what is called from Python, and keeps it until a file of this package changes. Other threads run while
    it is called."""
    try:
        compiled = njit(cache=True, nogil=True, **HOW)(function)
    except RuntimeError:  # there is no place to keep it
        return njit(nogil=True, **HOW)(function)
    compiled._cache._cache_file._source_stamp = state()  # Numba would look at the one file alone, and at its age
    return compiled


part = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **HOW)
"""For what such functions call; it is compiled and kept with them."""
inlined = njit(inline="always", **HOW)
"""For what becomes part of the loops it stands in."""
