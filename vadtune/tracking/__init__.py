"""MLflow: one experiment per search name, one parent run per search, one child run per trial.

``writer`` logs a search to a spool file on disk, and ``delivery`` sends the spool to the store in a background thread.
``queries`` reads searches and trials back; ``rows`` turns them into table rows. May import core and config; no
other package imports mlflow.
"""

from vadtune.tracking.delivery import log_to_run
from vadtune.tracking.queries import SearchRun, Trial, list_searches, list_trials, resolve_search
from vadtune.tracking.redact import HIDDEN, without_secrets
from vadtune.tracking.spool import is_finished
from vadtune.tracking.store import client_of, connect, connect_existing, sqlite_path, store_of, tracking_uri
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
