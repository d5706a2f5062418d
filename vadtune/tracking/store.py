"""Chooses the MLflow store and connects to it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from vadtune.core.errors import TrackingError
from vadtune.core.locks import wait_for_lock
from vadtune.tracking.empty_store import seeded
from vadtune.tracking.moved_artifacts import correct_artifact_folders
from vadtune.tracking.redact import HIDDEN, short_reason, without_secrets
from vadtune.tracking.store_errors import next_step, patiently

TRIAL_ID, TRIAL_END, CHECKPOINT, SEARCH_RUN = "vadtune.trial_id", "vadtune.end", "vadtune.checkpoint", "vadtune.search"
PARENT, RUN_NAME, FOLDER = "mlflow.parentRunId", "mlflow.runName", "vadtune.folder"
"""Tag names of runs."""

_REACH_SECONDS = 8.0
_DATABRICKS_SECONDS = 30.0  # its client library takes seconds to import
_EXAMPLES = "sqlite:///, http://, https://, postgresql://, mysql://, mssql://, databricks"

T = TypeVar("T")


def tracking_uri(uri: str | None) -> str:
    """Returns the store's URI: the argument, else MLFLOW_TRACKING_URI, else ./mlflow.db."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def store_of(recorded: str, uri: str | None) -> str:
    """Returns the store's URI of an earlier search.

    Args:
        recorded: The URI the search was started with, without its secrets.
        uri: The URI the user passes now, if any; it wins.

    Raises:
        TrackingError: The recorded URI had a secret, which was not saved, and no URI is passed now.
    """
    chosen = uri or (os.environ.get("MLFLOW_TRACKING_URI") if HIDDEN in recorded else recorded)
    if not chosen:
        raise TrackingError(
            f"the password of the tracking store {recorded} was not saved; pass the URI with its password in "
            "MLFLOW_TRACKING_URI or --tracking-uri"
        )
    return chosen


def sqlite_path(uri: str) -> Path | None:
    """Returns the database file of a sqlite store, None for another kind of store."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def client_of(uri: str) -> MlflowClient:
    """Returns a client without checking that the store answers."""
    return MlflowClient(tracking_uri=uri)


def connect(uri: str, *, to_read: bool = False) -> MlflowClient:
    """Returns a client of a store that answers; creates a missing sqlite file.

    Args:
        uri: The store.
        to_read: Whether nothing will be written; a sqlite file then need not be writable, and nothing is created in it.

    Raises:
        TrackingError: MLflow does not support the URI, a server did not answer within 10 seconds, or a file cannot be
            used.
    """
    for name in ("mlflow", "alembic"):  # they log each step of creating a database
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.utils.databricks_utils", "urllib3.connectionpool"):  # the reason is in the error below
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # likewise, with a traceback
    shown = without_secrets(uri)
    unknown = TrackingError(
        f"the URI of a tracking store must start with one of {_EXAMPLES}, or a scheme of an MLflow plugin, got "
        f"{shown}; for a file in this folder: sqlite:///mlflow.db"
    )
    if uri.startswith("file:") or (":" not in uri and uri != "databricks"):  # folders, which MLflow 3 refuses
        raise unknown

    def attempt() -> MlflowClient:
        if uri.startswith(("http://", "https://")):
            # Any answer is enough; the call below finds out whether it is MLflow's. urlopen would read the password as
            # part of the host name, so it is left out.
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
            is_server = uri.startswith(("http://", "https://"))  # whose answers may be lost
            seconds = _DATABRICKS_SECONDS if uri.startswith("databricks") else _REACH_SECONDS
            return within(seconds, lambda: patiently(attempt, attempts=3 if is_server else 1))
        if to_read:
            _check_readable(path)
            return attempt()
        if not os.access(path if path.exists() else path.parent, os.W_OK):  # MLflow would retry for minutes
            raise OSError(f"{path} cannot be written")
        with _folder_lock(path.parent), seeded(path):
            if path.exists():
                correct_artifact_folders(path)
            return attempt()  # without a time limit: creating a database on a busy disk takes seconds
    except UnsupportedModelRegistryStoreURIException as error:
        raise unknown from error
    except Exception as error:  # depends on the store: no answer, no database, not MLflow's, damaged
        reason = short_reason(error, uri)
        raise TrackingError(
            f"the tracking store {shown} must answer, got: {reason}; {next_step(reason, 'start the server')}"
        ) from error


def _check_readable(path: Path) -> None:
    """Raises OSError unless a sqlite file can be read, and has what MLflow would write into it when it opens it."""
    path.open("rb").close()
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        try:
            found = database.execute("SELECT 1 FROM experiments, alembic_version WHERE experiment_id = 0").fetchone()
        except sqlite3.DatabaseError as error:
            raise OSError(f"{path} is no database of MLflow ({error})") from error
    if found is None:
        raise OSError(f"{path} is no database of MLflow (it lacks the default experiment)")


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Locks a folder: two processes that create the same sqlite database at once would break each other's."""
    if os.name == "nt":  # Windows opens no folders
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        wait_for_lock(handle)
        yield
    finally:
        os.close(handle)


def connect_existing(uri: str, *, to_read: bool = False) -> MlflowClient:
    """Returns a client of a store that exists; as ``connect``, but never creates a sqlite file.

    Raises:
        TrackingError: It does not exist or does not answer.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise TrackingError(
            f"the tracking store {path} does not exist; run this where `vadtune search` ran, or pass the URI of the "
            "store by --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return connect(uri, to_read=to_read)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Runs ``work`` on a daemon thread and raises TimeoutError if it takes longer than ``seconds``."""
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=target, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:g} seconds") from error


def optimise(uri: str) -> None:
    """Lets a sqlite store count its rows, by which it plans queries; other stores do so themselves.

    MLflow's page of 10,000 trials sorted by a metric took 5.8 seconds, and then .3.
    """
    path = sqlite_path(uri)
    if path is not None and path.is_file():
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=1.0)) as database:
            database.execute("ANALYZE")
            database.commit()


def find_runs(
    client: MlflowClient,
    experiment_ids: list[str],
    condition: str,
    order_by: str | None = None,
    *,
    deleted: bool = False,
) -> list[Run]:
    """Returns all runs of experiments that meet an MLflow filter, page by page; only active ones unless ``deleted``."""
    runs: list[Run] = []
    token, order = None, [order_by] if order_by else None
    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    with _no_collection():
        while experiment_ids:
            page = client.search_runs(experiment_ids, condition, view, order_by=order, page_token=token)
            runs += page
            if not (token := page.token):
                break
    return runs


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switches Python's garbage collection off: MLflow makes millions of objects, which it would visit again and again.

    It took a third of the time of reading 10,000 runs.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def child_runs(
    client: MlflowClient, experiment_id: str, parent_id: str, *, condition: str = "", deleted: bool = False
) -> list[Run]:
    """Returns the runs of a search's trials, those that meet a condition, or also the deleted ones."""
    conditions = [f"tags.`{PARENT}` = '{parent_id}'", *([condition] if condition else [])]
    return find_runs(client, [experiment_id], " and ".join(conditions), deleted=deleted)


def list_experiments(client: MlflowClient) -> list[Experiment]:
    """Returns all experiments, page by page."""
    experiments: list[Experiment] = []
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        experiments += page
        if not (token := page.token):
            return experiments
