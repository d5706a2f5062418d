"""Numba kernels for CPUs: decoder epochs and posteriors (decoder_kernels), linear posteriors (linear_kernels).

PyTorch computes the same where a kernel does not apply or Numba cannot be imported. The first process on a machine
compiles the kernels, which takes about half a minute; the result is cached until a file of this package changes.
May import core, tables, data and config; Numba is imported by this package only.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from vadtune.config import SearchFile, TrialConfig
from vadtune.core.errors import ConfigError
from vadtune.core.files import cache_folder

T = TypeVar("T")
logger = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_DECIDE = (  # parameters that decide whether a kernel computes a configuration
    *("model.family", "model.layers", "model.head", "model.posterior", "model.activation", "model.layer_norm"),
    "train.compile",
)


@cache
def is_available() -> bool:
    """Returns whether the kernels can be used; the first call imports Numba and warns if that fails."""
    try:
        from vadtune.native import decoder_kernels, linear_kernels  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: the LLVM library that Numba loads is missing or damaged
        logger.warning(
            "numba cannot be imported (%s: %s): models train in PyTorch, which is slower on a CPU; "
            "install it again: pip install --force-reinstall numba",
            *(type(error).__name__, " ".join(str(error).split())[:200]),
        )
        return False
    return True


def supports_training(config: TrialConfig) -> bool:
    """Returns whether ``train_epoch`` trains a configuration: a VAD in float32, without dropout, by Adam or AdamW."""
    model, train = config.model, config.train
    known = model.family == "vad" and not model.dropout and train.optimiser in ("adam", "adamw")
    return known and train.precision == "float32" and supports_inference(config)


def supports_inference(config: TrialConfig) -> bool:
    """Returns whether ``fit_rows`` fits rows under a configuration: relu or tanh, no layer norm, compile not off."""
    return _suit(config) and is_available()


def _suit(config: TrialConfig) -> bool:
    model = config.model
    known = not model.layers or (model.activation in ("relu", "tanh") and not model.layer_norm)
    return known and model.head == "plain" and not model.closed_form and config.train.compile != "off"


def call(kernel: Callable[..., T], *args: Any) -> T:
    """Runs a kernel with BLAS on one thread, so that results do not depend on the thread count."""
    return call_on_row_blocks(lambda rows: kernel(*args), 1, 1, 1)[0]


def call_on_row_blocks(run: Callable[[slice], T], n: int, block: int, threads: int) -> list[T]:
    """Runs kernels on contiguous parts of n rows in parallel, BLAS on one thread each; returns their results in order.

    Args:
        run: Calls a kernel on some rows.
        n: Number of rows.
        block: The parts are multiples of this many rows, so results do not depend on the thread count.
        threads: Largest number of parts.
    """
    size = block * -(-n // (block * threads))
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    with _blas().limit(limits=1):
        if len(parts) == 1:
            return [run(parts[0])]
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(run, parts))


@cache
def _blas() -> Any:
    """Returns the thread controls of the BLAS libraries that are loaded, SciPy's among them: Numba calls that one."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@cache
def cache_path() -> Path:
    """Returns the folder of the compiled kernels, named after the content of this package's files.

    It lies in NUMBA_CACHE_DIR if that is set, else beside the files, else, if they are read-only, in the user's cache.
    """
    content = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_FOLDER.glob("*.py")))).hexdigest()
    default = _FOLDER / "__pycache__" if os.access(_FOLDER, os.W_OK) else cache_folder() / "numba"
    return Path(os.environ.get("NUMBA_CACHE_DIR") or default) / f"kernels-{content[:16]}"


def announce_compilation_by_workers(search: SearchFile) -> None:
    """Logs that the workers of a search will compile kernels, unless compiled ones are cached or none is used."""
    if any(cache_path().rglob("*.nbi")) or not _may_use_kernels(search):
        return
    if is_available():  # asked last: the usual search imports no Numba here
        log_compilation()


@cache
def log_compilation() -> None:
    """Logs once that kernels are being compiled, which takes a while."""
    logger.info("compiling machine code for this processor, once: about half a minute")


def _may_use_kernels(search: SearchFile) -> bool:
    """Returns whether a configuration of a search may be computed by a kernel."""
    choices = {key: search.domains[key].probes() for key in _DECIDE if key in search.domains}
    for values in product(*choices.values()):
        with suppress(ConfigError):  # some combinations exclude each other
            config = search.trial_config(dict(zip(choices, values, strict=True)))
            if config.model.closed_form or _suit(config):
                return True
    return False
