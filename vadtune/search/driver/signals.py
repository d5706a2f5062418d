"""Stops a search cleanly on Ctrl-C, SIGTERM or SIGHUP."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Makes the first signal stop Tune cleanly: it saves its state and returns.

    Signals are Ctrl-C, SIGTERM, and the SIGHUP of a terminal that is closed.
    Tune stops on SIGUSR1, which is sent here, so that the search knows that it was interrupted. A signal that arrives
    before Tune listens is sent again later, see SearchCallback. A second Ctrl-C raises KeyboardInterrupt.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        again = bool(received)
        received.append(number)
        if again and number == signal.SIGHUP:  # shell and system both send it when a terminal closes
            return
        if again:
            raise KeyboardInterrupt
        logger.info("stopping: saving the state of the search (Ctrl-C again to quit at once)")
        os.kill(os.getpid(), signal.SIGUSR1)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    stopping = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        stopping.append(signal.SIGHUP)
    handlers = {**dict.fromkeys(stopping, stop), signal.SIGUSR1: lambda number, frame: None}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        del os.environ["TUNE_DISABLE_SIGINT_HANDLER"]
