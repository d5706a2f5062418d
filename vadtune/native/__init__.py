"""Machine code for CPUs, compiled by Numba: decoders (decoder.py) and linear decoders that are solved (linear.py).

The first process on a machine that needs it compiles it, which takes about half a minute; what was compiled is kept
beside the files here, or else in the user's cache, until a file here changes. Without numba PyTorch's operations do the
same.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import threading
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from vadtune.config import TrialConfig

logger = logging.getLogger(__name__)

_COMPILING = "compiling machine code for this processor, once: about half a minute"
_FOLDER = Path(__file__).parent
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


def is_there() -> bool:
    """Returns whether numba is, without importing it."""
    return find_spec("numba") is not None


def supports_training(config: TrialConfig) -> bool:
    """Returns whether a configuration is one that decoder.py trains: without encoder or dropout, in float32, by Adam or
    AdamW."""
    model, train = config.model, config.train
    plain = model.family == "vad" and not model.dropout and train.optimiser in ("adam", "adamw")
    return plain and train.precision == "float32" and supports_inference(config)


def supports_inference(config: TrialConfig) -> bool:
    """Returns whether decoder.py fits new rows under models of a configuration: decoders without layer norm, by relu or
    tanh, that are not solved, unless ``train.compile`` is off."""
    model = config.model
    known = not model.layers or (model.activation in ("relu", "tanh") and not model.layer_norm)
    return known and model.head == "plain" and not model.closed_form and config.train.compile != "off"


def run(kernel: Any, *arguments: Any) -> Any:
    """Calls machine code; tells why that takes so long if it has to be compiled first."""
    if kernel in _READY:
        return kernel(*arguments)
    timer = threading.Timer(_WITHOUT_A_WORD, logger.info, (_COMPILING,))
    timer.start()
    try:
        result = kernel(*arguments)
        _READY.add(kernel)
        return result
    finally:
        timer.cancel()


@cache
def state() -> str:
    """Returns what the files here are, in short."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_FOLDER.glob("*.py")))).hexdigest()


def announce(names: Iterable[str]) -> None:
    """Tells that other processes will compile these modules, unless what they need lies beside the files here, or
    somewhere else, perhaps. Does not import numba, which takes time."""
    if not is_there():
        return
    kept = _FOLDER / "__pycache__"
    elsewhere = "NUMBA_CACHE_DIR" in os.environ or not os.access(kept if kept.exists() else _FOLDER, os.W_OK)
    indices = {name: kept.glob(f"{name}.*.nbi") for name in names}
    if not elsewhere and not all(any(state().encode() in i.read_bytes() for i in own) for own in indices.values()):
        logger.info(_COMPILING)
