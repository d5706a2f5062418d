"""CPU cores this process may use, its imports, its last words, and the server that worker processes are forked from.

Importing PyTorch takes seconds. A fork server imports it once for all workers, in the background; it computes nothing,
so forking it copies no thread and no lock.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

_SHELL = Path("/bin/sh")
_PRELOADED = ["vadtune.training.refit"]


def available_cores() -> int:
    """Returns the number of CPU cores this process may use; on systems without CPU affinity (macOS) all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Collects no garbage during a block that imports a lot.

    What is imported stays; to look through it again and again takes more than a second of a search's start.
    """
    gc.collect()  # garbage that is there now would stay as well: 250 MB after loading 60,000 x 784 values
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Prints a line to stderr if this process is killed or exited within the block, so that it cannot do so itself."""
    if not _SHELL.exists():  # Windows
        yield
        return
    script = 'read -r end || printf "%s\\n" "$0" >&2'  # no line before the end of its input: this process is gone
    watcher = subprocess.Popen([_SHELL, "-c", script, text], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            watcher.communicate(b"end\n")


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Discards what this process writes to its file descriptor for errors, also from native code, during a block."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def worker_context() -> ForkServerContext:
    """Returns the multiprocessing context that worker processes are started in."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def start_server() -> None:
    """Starts the fork server in the background if several cores are available; it ends with this process."""
    if available_cores() > 1:
        worker_context()
        forkserver.ensure_running()
