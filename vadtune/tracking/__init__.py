"""MLflow: one experiment per search name, one parent run per search, one child run per trial.

What a search logs (``Tracker``) goes to a spool on disk, and from there to the store by a thread of its own; reading
goes through ``resolve_search`` and ``list_trials``. This is the only package that knows MLflow.
"""

from vadtune.tracking.delivery import log_to_run
from vadtune.tracking.reader import SearchRun, Trial, list_searches, list_trials, resolve_search
from vadtune.tracking.spool import is_finished
from vadtune.tracking.store import (
    HIDDEN,
    client_of,
    connect,
    connect_existing,
    sqlite_path,
    store_of,
    tracking_uri,
    without_secrets,
)
from vadtune.tracking.writer import Tracker, check_holds, sync

__all__ = [
    "HIDDEN",
    "SearchRun",
    "Tracker",
    "Trial",
    "check_holds",
    "client_of",
    "connect",
    "connect_existing",
    "is_finished",
    "list_searches",
    "list_trials",
    "log_to_run",
    "resolve_search",
    "sqlite_path",
    "store_of",
    "sync",
    "tracking_uri",
    "without_secrets",
]
