"""Worker processes: forked from a server that has imported what they need, once and in the background.

To import PyTorch takes a process seconds. A server, which computes nothing and so has no thread or lock that a fork
could harm, does it once for all workers, while whoever needs them is still reading files.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

_NEEDED = ["vadtune.training.refit"]


def worker_context() -> ForkServerContext:
    """Returns the context in which workers are started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_NEEDED)
    return context


def start_server() -> None:
    """Lets the server begin, if there are cores for workers; returns at once. It ends with this process."""
    if len(os.sched_getaffinity(0)) > 1:
        worker_context()
        forkserver.ensure_running()
