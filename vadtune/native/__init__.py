"""Machine code for CPUs, compiled by Numba: decoders (decoder.py) and linear decoders that are solved (linear.py).

The first process on a machine that needs it compiles it, which takes about 20 seconds; what was compiled is kept beside
the files here, or else in the user's cache, until one of them changes. Without numba PyTorch's operations do the same.
"""

from __future__ import annotations

import importlib
import logging
import threading
from functools import cache
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_WITHOUT_A_WORD = 3.0  # seconds
_READY: set[Any] = set()


@cache
def kernels(name: str) -> ModuleType | None:
    """Returns a module of this package, ready for use; None without numba, which is no error.

    Importing numba takes half a second, so it is done where it pays.
    """
    try:
        module = importlib.import_module(f"vadtune.native.{name}")
    except ImportError:
        return None
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(torch.get_num_threads(), "blas")  # SciPy's was not there when the number was set
    return module


def run(kernel: Any, *arguments: Any) -> Any:
    """Calls machine code; tells why that takes so long if it has to be compiled first."""
    if kernel in _READY:
        return kernel(*arguments)
    told = "compiling machine code for this processor, once: about half a minute"
    timer = threading.Timer(_WITHOUT_A_WORD, logger.info, (told,))
    timer.start()
    try:
        result = kernel(*arguments)
        _READY.add(kernel)
        return result
    finally:
        timer.cancel()
