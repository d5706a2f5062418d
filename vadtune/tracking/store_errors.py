"""Errors of MLflow stores: which are final, how a call is tried again, and how they are reported on one line."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mlflow.exceptions import MlflowException

from vadtune.core.errors import OutputError, TrackingError
from vadtune.tracking.redact import HIDDEN, short_reason, without_secrets

T = TypeVar("T")

# Codes by which a store says that it read a request and refuses it.
_REFUSALS = {
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED"),
    *("BAD_REQUEST", "INVALID_STATE"),
}
_PAUSE = 0.5  # seconds
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# Answers of an artifact store that say nothing about the request: log in, timeout, too many requests.
_TRANSIENT_STATUS = (401, 408, 429)
_FULL = ("database or disk is full", "No space left on device")


class RejectedError(Exception):
    """Lines that the store would refuse, found without asking it."""


class SearchGoneError(TrackingError):
    """The store does not hold a search any more, so that nothing can be delivered to it."""


def is_rejection(error: BaseException) -> bool:
    """Returns whether the store refuses a request for good; any other failure means that it is away for a while.

    A store that cannot be reached, fails (HTTP 5xx), asks for a login or breaks an answer off may accept the same
    request later.
    """
    if isinstance(error, RejectedError):
        return True
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    response = getattr(error, "response", None)
    if response is not None:  # of an artifact store
        return 400 <= response.status_code < 500 and response.status_code not in _TRANSIENT_STATUS
    return isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError, ImportError))


@contextlib.contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Raises any error of a store as a TrackingError, whose message is one line without secrets."""
    try:
        yield
    except (TrackingError, OutputError):
        raise
    except Exception as error:  # the type depends on the store
        reason = short_reason(error, uri)
        raise TrackingError(
            f"the tracking store {without_secrets(uri)} must do as asked, got: {reason}; "
            f"{next_step(reason, 'run the command again once it does')}"
        ) from error


def next_step(reason: str, otherwise: str) -> str:
    """Returns what a user can do about the error of a store."""
    first = "make room on its disk" if any(text in reason for text in _FULL) else otherwise
    return f"{first}, or pass another URI by --tracking-uri or MLFLOW_TRACKING_URI"


@contextlib.contextmanager
def without_http_retries() -> Iterator[None]:
    """Switches MLflow's own retries off: one whose answer was lost would create a run a second time."""
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = before


def patiently(work: Callable[[], T], *, attempts: int = 5, progress: Callable[[], object] = lambda: None) -> T:
    """Calls ``work``, which can be repeated safely, again while the store is away; raises what the last call raised.

    Args:
        work: Is called.
        attempts: How often it is called at most, without progress.
        progress: Returns something that changes where a call that failed made progress.
    """
    attempt, before = 1, progress()
    while True:
        try:
            return work()
        except Exception as error:
            if (now := progress()) != before:
                attempt, before = 0, now
            if attempt == attempts or isinstance(error, TrackingError) or is_rejection(error):
                raise
            attempt += 1
            time.sleep(_PAUSE * attempt)


def with_store(uri: str, command: str) -> str:
    """Returns a shell command that is run with a store, without the store where its URI holds a secret."""
    shown = without_secrets(uri)
    return command if HIDDEN in shown else f"MLFLOW_TRACKING_URI={shlex.quote(shown)} {command}"
