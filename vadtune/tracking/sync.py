"""Delivers what a search logged after it has ended: the rest, rejected lines again, or all of it into another store."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

from mlflow import MlflowClient

from vadtune.artifacts.run_folder import Run, write_run
from vadtune.core.errors import TrackingError
from vadtune.tracking.commands import into, next_command
from vadtune.tracking.delivery import Delivery
from vadtune.tracking.redact import short_reason, without_secrets
from vadtune.tracking.rejected import RejectedLines
from vadtune.tracking.run_log import search_entry
from vadtune.tracking.runs import check_parent, find_or_create_experiment, find_or_create_parent, is_settled
from vadtune.tracking.spool import Spool, is_delivered
from vadtune.tracking.store import PARENT, child_runs, connect, sqlite_path
from vadtune.tracking.store_errors import patiently, readable_errors

logger = logging.getLogger(__name__)

_SETTLE_ATTEMPTS = 8


def connect_of(folder: Path, uri: str, *, to_read: bool = False) -> MlflowClient:
    """Returns a client of the store that a search was started with.

    Raises:
        TrackingError: It does not answer; a sqlite file that is lost is not created.
    """
    if (path := sqlite_path(uri)) is not None and not path.exists():
        raise TrackingError(
            f"the store {path} of {folder.name} must exist, and does not; put it back, or write the search into "
            f"another store: {next_command(f'sync {folder.name} --into URI', folder=folder)}"
        )
    return connect(uri, to_read=to_read)


def check_holds(client: MlflowClient, uri: str, folder: Path, run_id: str) -> None:
    """Checks that a store has the parent run of a search.

    Raises:
        TrackingError: It does not, or it is away.
    """
    with readable_errors(uri):
        patiently(lambda: check_parent(client, uri, folder, run_id))


def is_synced(folder: Path, uri: str, *, experiment_id: str, run_id: str) -> bool:
    """Returns whether ``sync`` has nothing to do, and changes nothing; arguments and errors are those of ``sync``."""
    client = connect_of(folder, uri, to_read=True)
    check_holds(client, uri, folder, run_id)
    if not is_delivered(folder):
        return False
    with readable_errors(uri):
        return patiently(lambda: is_settled(client, experiment_id, run_id))


def sync(folder: Path, uri: str, *, experiment_id: str, run_id: str, retry_rejected: bool = False) -> int:
    """Sends the entries in the folder of a search that the store has not received.

    Args:
        folder: The folder of the search.
        uri: The store that the search was started with.
        experiment_id: Its experiment.
        run_id: Its parent run.
        retry_rejected: Whether lines that the store rejected are sent again.

    Returns:
        How many bytes of the spool were sent; 0 if the store had everything.

    Raises:
        TrackingError: The store does not answer, stops answering, or does not have the search.
    """
    client = connect_of(folder, uri)
    check_holds(client, uri, folder, run_id)
    spool = Spool(folder)
    waiting = spool.undelivered
    try:
        delivery = Delivery(client, experiment_id, run_id, spool)
        command = next_command(f"sync {folder.name}", folder=folder, uri=uri)
        _deliver_all(delivery, uri, folder, command=command, retry_rejected=retry_rejected)
    finally:
        spool.close()
    return waiting


def sync_into(folder: Path, uri: str, run: Run) -> Run:
    """Writes a whole search into a store, which it belongs to from then on; can be repeated safely.

    Args:
        folder: The folder of the search.
        uri: The store; a missing sqlite file is created.
        run: The content of its run.json, which is replaced.

    Returns:
        The new content of run.json.

    Raises:
        TrackingError: The store does not answer, stops answering, or refuses the search.
    """
    client = connect(uri)
    with readable_errors(uri):
        experiment, experiment_id = patiently(lambda: _free_experiment(client, uri, run.experiment))
        run_id = patiently(lambda: find_or_create_parent(client, experiment_id, run.run))
        if run_id != run.parent_run_id:
            patiently(lambda: _adopt(client, experiment_id, run.parent_run_id, run_id))
    new = dataclasses.replace(
        run, experiment=experiment, experiment_id=experiment_id, parent_run_id=run_id, tracking_uri=without_secrets(uri)
    )
    spool = Spool(folder, replay=True)
    try:
        delivery = Delivery(client, experiment_id, run_id, spool, rejected=RejectedLines(folder, empty=True))
        if not any(entry["op"] == "search" for entry in spool.entries()):  # of an earlier version
            spool.append(search_entry(folder))
        _deliver_all(delivery, uri, folder, command=next_command(f"sync {folder.name} {into(uri)}", folder=folder))
        write_run(folder, new)
        spool.keep_mark()
        delivery.rejected.replace()
    finally:
        spool.close()
    return new


def _deliver_all(delivery: Delivery, uri: str, folder: Path, *, command: str, retry_rejected: bool = False) -> None:
    try:
        if retry_rejected:
            delivery.retry_rejected()
        while patiently(delivery.deliver, progress=lambda: delivery.sent):
            pass
        patiently(delivery.settle, attempts=_SETTLE_ATTEMPTS)
    except TrackingError:
        raise
    except Exception as error:  # the type depends on the store
        raise TrackingError(
            f"the store {without_secrets(uri)} must accept all entries, but failed ({short_reason(error, uri)}); the "
            f"rest is kept, run `{command}` again"
        ) from error
    if len(delivery.rejected):
        again = next_command(f"sync {folder.name} --retry-rejected", folder=folder, uri=uri)
        logger.warning("%s; try them again: %s", delivery.rejected.summary(), again)


def _free_experiment(client: MlflowClient, uri: str, name: str) -> tuple[str, str]:
    """Returns name and id of an experiment: the one of this name, else name-2 where that was deleted, and so on."""
    for number in itertools.count(1):
        free = name if number == 1 else f"{name}-{number}"
        found = client.get_experiment_by_name(free)
        if found is None or found.lifecycle_stage != "deleted":
            return free, find_or_create_experiment(client, uri, free)
    raise AssertionError("there are endless names")


def _adopt(client: MlflowClient, experiment_id: str, old: str, new: str) -> None:
    """Makes the trials of a deleted parent run those of the new one, where the store is the same."""
    for run in child_runs(client, experiment_id, old):
        client.set_tag(run.info.run_id, PARENT, new)
