"""Starts a Ray on this machine, for one search or for the tests, and ends with it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

import ray

from vadtune.core.processes import available_cores
from vadtune.search.cluster.join import silence_logs
from vadtune.search.cluster.token import protect_token
from vadtune.search.driver.ray_folder import ray_folder
from vadtune.search.ray_compat import start_on_loopback

_SERVERS = ("gcs_server", "raylet")
_is_ours = False  # whether the Ray that runs was started by ``local_ray``
_OBJECT_STORE_BYTES = 512 * 2**20


@contextlib.contextmanager
def local_ray(data_bytes: int = 0) -> Iterator[None]:
    """Starts a Ray that listens on loopback only and shuts it down at the end; uses a running Ray and leaves it.

    Args:
        data_bytes: Size of the data that trials share.

    Raises:
        SearchError: A process of Ray listens on an address that other machines can reach.
    """
    silence_logs()
    if ray.is_initialized():
        yield
        return
    protect_token()
    global _is_ours
    _is_ours = True
    with ray_folder() as folder:
        start_on_loopback(
            folder,
            num_cpus=available_cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            object_store_memory=_OBJECT_STORE_BYTES + data_bytes,
            preloaded="vadtune.search.trials.preloaded",
        )
        try:
            yield
        finally:
            _is_ours = False
            ray.shutdown()


@contextlib.contextmanager
def ended_with_ray() -> Iterator[None]:
    """Ends this process during a block, without exit handlers, if a server of the Ray of this machine dies.

    Some of Tune's calls would wait without end for a server that is gone, others end the process themselves.
    """
    psutil = importlib.import_module("psutil")
    servers = [child for child in psutil.Process().children(recursive=True) if child.name() in _SERVERS]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            try:
                alive = all(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers)
            except psutil.Error:
                alive = False
            if not alive:
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class PendingRay(NamedTuple):
    """A Ray that is being started.

    Attributes:
        cores: Its number of cores; None if another process has started it.
        wait: Waits until it has started; raises what its start raised.
    """

    cores: int | None
    wait: Callable[[], None]


@contextlib.contextmanager
def pending_ray(data_bytes: int = 0) -> Iterator[PendingRay]:
    """Starts a local Ray in a thread while the block runs, see ``local_ray``."""
    cores = None if ray.is_initialized() and not _is_ours else available_cores()
    # The processes of Ray die with the thread that started them, so the thread must outlive them.
    with ThreadPoolExecutor(1) as thread:
        context = local_ray(data_bytes)
        started = thread.submit(context.__enter__)
        try:
            yield PendingRay(cores, started.result)
        finally:
            wait([started])  # a block that fails at once ends before Ray has started
            if started.exception() is None:
                context.__exit__(*sys.exc_info())
