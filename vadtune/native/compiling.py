"""How functions here are compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Sums may be taken in any order, so that loops use the whole vector width; NaN and infinity stay what they are.
HOW: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}

_FILES = sorted(Path(__file__).parent.glob("*.py"))
_STATE = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()


def machine_code(function: Callable[..., Any]) -> Any:
    """Compiles what is called from Python, and keeps it until a file of this package changes; other threads run while
    it does."""
    compiled = njit(cache=True, nogil=True, **HOW)(function)
    compiled._cache._cache_file._source_stamp = _STATE  # Numba would look at the one file alone, and at its age
    return compiled


part = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **HOW)
"""Of what that calls, and is kept with it."""
inlined = njit(inline="always", **HOW)
"""Of what becomes part of the loops it stands in."""
