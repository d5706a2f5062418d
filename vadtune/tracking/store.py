"""Which MLflow store is used, and whether it answers."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from urllib.request import urlopen

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import, which is when it is read
# A server that is away is noticed in seconds, not in MLflow's four minutes; what waits for it is tried again later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Else each run that ends is announced on stdout by its address, a password in it included.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from vadtune.core.errors import TrackingError
from vadtune.tracking.empty_store import begun_with_copy

TRIAL_ID, TRIAL_END, CHECKPOINT, SEARCH_RUN = "vadtune.trial_id", "vadtune.end", "vadtune.checkpoint", "vadtune.search"
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
"""Names of the tags that runs carry."""

HIDDEN = "***"
"""Stands where a password was."""
_REACH_SECONDS = 8.0
_SECRET_WORDS = ("pass", "token", "secret", "key", "auth", "credential")
_SCHEMES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql")

T = TypeVar("T")


def tracking_uri(given: str | None) -> str:
    """Returns the store to use: the one given, else MLFLOW_TRACKING_URI, else sqlite in the working directory."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def store_of(recorded: str, given: str | None) -> str:
    """Returns the store of a search that was started before.

    Args:
        recorded: The store it was started with, without its secrets.
        given: The store the user names now, if any.

    Raises:
        TrackingError: The recorded one had a secret, which was not written down, and none is named now.
    """
    uri = given or (os.environ.get("MLFLOW_TRACKING_URI") if HIDDEN in recorded else recorded)
    if not uri:
        raise TrackingError(
            f"the password of the tracking store {recorded} was not written down; name the store with its password in "
            "MLFLOW_TRACKING_URI, or by --tracking-uri"
        )
    return uri


def sqlite_path(uri: str) -> Path | None:
    """Returns the database file of a sqlite store, None for another kind of store."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def without_secrets(uri: str) -> str:
    """Returns the URI with passwords and tokens replaced, fit for logs and files."""
    parts = _split(uri)
    if parts is None:
        return HIDDEN
    netloc, query = parts.netloc, parts.query
    if parts.password or (parts.username and parts.scheme in ("http", "https")):  # there a lone name may be a token
        user = parts.username if parts.password else HIDDEN
        netloc = f"{user or ''}{':' + HIDDEN if parts.password else ''}@{netloc.rpartition('@')[2]}"
    if _secret_values(parts):
        query = urlencode([(k, HIDDEN if _is_secret(k) else v) for k, v in parse_qsl(query)], safe="*/")
    if (netloc, query) == (parts.netloc, parts.query):
        return uri
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def hide_secrets(text: str, uri: str) -> str:
    """Returns a message of somebody else's, such as an error of the store, without the secrets of its URI."""
    parts = _split(uri)
    if parts is None:
        return text.replace(uri, HIDDEN)
    secrets = [parts.password or (parts.username if parts.scheme in ("http", "https") else None)]
    for secret in [secret for secret in secrets if secret] + _secret_values(parts):
        text = text.replace(secret, HIDDEN).replace(unquote(secret), HIDDEN)
    return text


def _split(uri: str) -> SplitResult | None:
    try:
        return urlsplit(uri)
    except ValueError:  # no URI at all, which does not mean that it holds no secret
        return None


def _secret_values(parts: SplitResult) -> list[str]:
    return [value for key, value in parse_qsl(parts.query) if _is_secret(key)]


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_WORDS)


def client_of(uri: str) -> MlflowClient:
    """Returns a client without asking whether the store answers."""
    return MlflowClient(tracking_uri=uri)


def connect(uri: str) -> MlflowClient:
    """Returns a client of a store that answers.

    Raises:
        TrackingError: The URI is of no kind MLflow serves, a server did not answer within 10 seconds, or a file cannot
            be used.
    """
    for name in ("mlflow", "alembic"):  # they narrate the creation of a database
        logging.getLogger(name).setLevel(logging.WARNING)
    shown = without_secrets(uri)
    if not uri.startswith(_SCHEMES):
        raise TrackingError(
            f"a tracking store is named by a URI that starts with {', '.join(_SCHEMES)}, got {shown}; for a file in "
            "this folder: sqlite:///mlflow.db"
        )

    def attempt() -> MlflowClient:
        if uri.startswith(("http://", "https://")):
            # Any answer will do here; whether it is MLflow's, the next call tells.
            # Without the password, which urlopen would take for a part of the host's name.
            parts = urlsplit(uri)
            probe = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health")
            with contextlib.suppress(HTTPError):
                urlopen(urlunsplit(probe), timeout=_REACH_SECONDS / 2).close()
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        return client

    path = sqlite_path(uri)
    try:
        if path is None:
            return _within(_REACH_SECONDS, attempt)
        if not os.access(path if path.exists() else path.parent, os.W_OK):  # MLflow would try again for minutes
            raise OSError(f"{path} cannot be written")
        with _one_at_a_time(path.parent), begun_with_copy(path):
            return attempt()  # a file answers sooner or later; making a new database on a busy disk takes its time
    except Exception as error:  # of many kinds, by store: no answer, no database, not MLflow's, damaged
        reason = hide_secrets(" ".join(str(getattr(error, "reason", None) or error).split())[:300], uri)
        raise TrackingError(
            f"the tracking store {shown} must answer, got: {reason or type(error).__name__}; start the server, or name "
            "another with --tracking-uri or MLFLOW_TRACKING_URI"
        ) from error


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one process at a time go on: two that make a database in a file at once break each other's."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def connect_existing(uri: str) -> MlflowClient:
    """Returns a client of a store that exists; connecting alone would create a missing sqlite file.

    Raises:
        TrackingError: It does not exist or does not answer.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise TrackingError(
            f"the tracking store {path} does not exist; run this where `vadtune search` ran, or name the store by "
            "--tracking-uri or MLFLOW_TRACKING_URI"
        )
    return connect(uri)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Runs ``work`` for at most this long; it is left behind on a daemon thread if it takes longer."""
    outcome: list[T | Exception] = []

    def target() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    (result,) = outcome
    if isinstance(result, Exception):
        raise result
    return result


def child_runs(client: MlflowClient, experiment_id: str, parent_id: str) -> list[Run]:
    """Returns the runs of a search's trials."""
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`{PARENT}` = '{parent_id}'",
            ViewType.ACTIVE_ONLY,
            max_results=1000,
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs
