"""What a search needs of the process it runs in: a Ray of its own, a clean way to stop, its folder for itself."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import optuna
import ray
import torch

from vadtune.config import SearchConfig
from vadtune.errors import ConfigError, SearchError

logger = logging.getLogger(__name__)

_LOCK_FILE = "lock"
_OBJECT_STORE_BYTES = 512 * 2**20


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Starts a local Ray that listens on loopback only, without dashboard; one that runs already is used and left."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=_cores(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(config: SearchConfig) -> None:
    """Makes sure that a trial can run at all; Ray would wait for ever for what it does not have.

    Raises:
        ConfigError: A trial asks for more than there is.
    """
    own = {"CPU": _cores(), "GPU": torch.cuda.device_count()}
    there = ray.cluster_resources() if ray.is_initialized() else own
    problems = [
        f"search.{key}: must be at most the {there.get(kind, 0):g} {kind}s there are, got {asked:g}; lower it"
        for key, kind, asked in (
            ("cpus_per_trial", "CPU", config.cpus_per_trial),
            ("gpus_per_trial", "GPU", config.gpus_per_trial),
        )
        if asked > there.get(kind, 0)
    ]
    if problems:
        raise ConfigError(problems)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Holds a search's folder for this process; the system lets go of it however the process ends.

    Raises:
        SearchError: Another process holds it.
    """
    with (folder / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchError(
                f"{folder.name}: must not be running already, and another process runs it; wait for that one to end"
            ) from error
        yield


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Makes the first Ctrl-C (or SIGTERM) stop Tune cleanly: it saves its state and returns.

    Tune listens to SIGUSR1 for that; taking its way keeps the knowledge of an interruption here. Before Tune listens
    there is nothing to save, and the process is interrupted as usual, as it is by a second Ctrl-C.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        logger.info("stopping: saving the state of the search (Ctrl-C again to quit at once)")
        os.kill(os.getpid(), signal.SIGUSR1)

    def quit_now(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: quit_now}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        del os.environ["TUNE_DISABLE_SIGINT_HANDLER"]
