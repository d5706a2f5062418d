"""MLflow: one experiment per search name, one parent run per search, one child run per trial.

Writing (``Tracker``) happens off the search's own thread; reading goes through ``resolve_search`` and ``list_trials``.
This is the only package that knows MLflow.
"""

from vadtune.tracking.reader import SearchRun, Trial, list_trials, resolve_search
from vadtune.tracking.store import HIDDEN, connect, connect_existing, sqlite_path, tracking_uri, without_secrets
from vadtune.tracking.writer import Tracker, log_to_run

__all__ = [
    "HIDDEN",
    "SearchRun",
    "Tracker",
    "Trial",
    "connect",
    "connect_existing",
    "list_trials",
    "log_to_run",
    "resolve_search",
    "sqlite_path",
    "tracking_uri",
    "without_secrets",
]
