"""Numba settings of the kernels in this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, njit

from vadtune.native import cache_path

# Sums may be reordered, so loops use the whole vector width; NaN and infinity keep their meaning.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}

helper = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
"""Decorates functions that kernels call; they are compiled and cached with the kernel."""
inlined = njit(inline="always", **OPTIONS)
"""Decorates functions that become part of the loops they are called in, so that these are vectorised."""


def kernel(function: Callable[..., Any]) -> Any:
    """Decorates functions that Python calls: compiled at the first call, cached on disk, run without the GIL."""
    default = config.CACHE_DIR
    # Numba checks the age of one file only; a folder named after the content of all files is never out of date.
    config.CACHE_DIR = str(cache_path())
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder can be written to
        return njit(**OPTIONS)(function)
    finally:
        config.CACHE_DIR = default
