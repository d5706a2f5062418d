"""Numba settings of the kernels in this package, and the sharing of their compilation between processes.

The workers of a search need the same kernels at the same time. The first one compiles a kernel; the others wait for it
and meanwhile compile the kernels of another module, one process for each module.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from numba import config, njit, typeof
from numba.core import event

from vadtune.native import cache_path, log_compilation

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Sums may be reordered, so loops use the whole vector width; NaN and infinity keep their meaning.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}
_LONGEST_WAIT = 120.0  # seconds; a process that is stopped in the middle of compiling must not hold up others for ever

helper = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
"""Decorates functions that kernels call; they are compiled and cached with the kernel."""
inlined = njit(inline="always", **OPTIONS)
"""Decorates functions that become part of the loops they are called in, so that these are vectorised."""

_MODULES: dict[str, list[Callable[[], Any]]] = {}  # module -> functions that compile its kernels or load them
_THREADS = threading.RLock()


class _Announcement(event.Listener):  # type: ignore[misc]
    """Says that something compiles, when it does: not where a kernel is loaded from the cache."""

    def on_start(self, event: Any) -> None:
        """See numba.core.event.Listener."""
        if event.data["dispatcher"].py_func.__module__.startswith("vadtune."):
            log_compilation()

    def on_end(self, event: Any) -> None:
        """See numba.core.event.Listener."""


event.register("numba:compile", _Announcement())


def kernel(example: Callable[[], tuple[Any, ...]]) -> Callable[[Callable[..., Any]], Any]:
    """Decorates functions that Python calls: compiled at the first call, cached on disk, run without the GIL.

    Args:
        example: Returns arguments of the types that all calls have.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        default = config.CACHE_DIR
        # Numba checks the age of one file only; a folder named after the content of all files is never out of date.
        config.CACHE_DIR = str(cache_path())
        try:
            dispatcher = njit(cache=True, **OPTIONS)(function)
        except RuntimeError:  # no folder can be written to
            return njit(**OPTIONS)(function)
        finally:
            config.CACHE_DIR = default
        module, compile_here = function.__module__, dispatcher.compile
        kernels = _MODULES.setdefault(module, [])
        kernels.append(lambda: compile_here(tuple(typeof(value) for value in example())))
        dispatcher.compile = lambda signature: _in_turn(module, lambda: compile_here(signature))
        return dispatcher

    return decorate


def _in_turn(module: str, compile_one: Callable[[], Any]) -> Any:
    """Calls ``compile_one`` while no other process compiles kernels of the module; helps the others meanwhile."""
    end = time.monotonic() + _LONGEST_WAIT
    with _THREADS:
        while True:
            with _locked(module) as is_mine:
                if is_mine or time.monotonic() > end:
                    return compile_one()
            if not any(_help(other) for other in _MODULES if other != module):
                time.sleep(0.05)


def _help(module: str) -> bool:
    """Compiles the kernels of a module, or loads compiled ones; returns False if another process does or all are."""
    with _locked(module) as is_mine:
        if not is_mine or not _MODULES[module]:
            return False
        for compile_one in _MODULES[module]:
            compile_one()
        _MODULES[module] = []
        return True


@contextlib.contextmanager
def _locked(module: str) -> Iterator[bool]:
    """Yields whether this process has the lock of a module, without waiting; True where nothing can be locked.

    The system frees the lock of a process that dies.
    """
    if fcntl is None:
        yield True
        return
    is_mine, file = True, -1
    with contextlib.suppress(OSError):  # a folder that cannot be written to, or a file system without locks
        cache_path().mkdir(parents=True, exist_ok=True)
        file = os.open(cache_path() / f"{module}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_mine = False
    try:
        yield is_mine
    finally:
        if file >= 0:
            os.close(file)
