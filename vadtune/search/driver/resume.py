"""Resumes a search from its run folder, wherever that lies now, and enlarges it."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from vadtune.artifacts.run_folder import SEARCH_FILE, Run, is_uri, read_run, run_lock, tune_place, write_run
from vadtune.core.errors import TrackingError
from vadtune.core.files import write_atomically
from vadtune.data import load_dataset
from vadtune.search.algorithms.samplers import sample_count
from vadtune.search.cluster.join import joined
from vadtune.search.driver.ray_start import pending_ray
from vadtune.search.driver.resources import check_resources
from vadtune.search.driver.run import TUNE, SearchOutcome, run_to_end
from vadtune.search.ray_compat import check_protective
from vadtune.search.resume.enlarge import (
    NOTHING,
    Enlargement,
    check_same_data,
    enlarged_search,
    has_all_trials,
    resumed_search,
)
from vadtune.search.resume.snapshot import restore_snapshot
from vadtune.search.trials.placement import pack_size
from vadtune.search.trials.trial_data import TrialData
from vadtune.tracking.places import store_beside
from vadtune.tracking.spool import is_finished
from vadtune.tracking.store import client_of, sqlite_path, store_of
from vadtune.tracking.sync import check_holds, connect_of, sync
from vadtune.tracking.writer import Tracker

logger = logging.getLogger(__name__)


def resume_search(
    folder: Path, *, tracking_uri: str | None, address: str | None = None, wanted: Enlargement = NOTHING
) -> SearchOutcome | None:
    """Completes a search that was interrupted or killed, or enlarges one.

    Args:
        folder: The folder of the search.
        tracking_uri: The MLflow store; None for the one that the search was started with.
        address: Address of a running Ray cluster; None to start a Ray on this machine.
        wanted: How many trials, or how much time, the search is to have; recorded in its search file.

    Returns:
        How the search ended; None if it was complete.

    Raises:
        SearchError: The folder holds no search that can be resumed, or its search file was changed since it began.
        ConfigError: The search cannot be enlarged as wanted.
        TrackingError: The store does not answer or does not hold the search.
    """
    check_protective()
    run = _moved_here(folder, read_run(folder))
    uri = store_of(run.tracking_uri, tracking_uri)
    with joined(address) if address else contextlib.nullcontext(), run_lock(folder):
        client = _client(uri, run, folder)
        search = resumed_search(folder)
        if wanted:
            search = enlarged_search(folder, search, wanted)
        check_resources(search.search)
        if is_finished(folder) and (not wanted or has_all_trials(folder, search)):
            sync(folder, uri, experiment_id=run.experiment_id, run_id=run.parent_run_id)
            return None
        data = TrialData(load_dataset(search.data))
        check_same_data(folder, search, data.mask_hashes)
        with pending_ray(data.size) as pending:
            where = tune_place(folder, run)
            known = restore_snapshot(folder, where, sample_count(search))
            write_run(folder, run)
            if wanted:
                write_atomically(folder / SEARCH_FILE, search.to_yaml().encode())
            tracker = Tracker(client, uri, search.name, run.run, folder)
            tracker.reopen(run.parent_run_id, run.experiment_id)
            size = pack_size(search, pending.cores)
            return run_to_end(search, data, tracker, where, known, pending, size, address)


def _moved_here(folder: Path, run: Run) -> Run:
    """Returns run.json's content with the places of today, where the run folder was moved or copied."""
    tune = run.tune if is_uri(run.tune) or not (folder / TUNE).is_dir() else TUNE
    return replace(run, tracking_uri=store_beside(folder, run), tune=tune, folder=str(folder))


def _client(uri: str, run: Run, folder: Path) -> Any:
    """Returns a client of the store that a search was started with, even of a server that does not answer now."""
    try:
        client = connect_of(folder, uri)
    except TrackingError as error:
        if sqlite_path(uri) is not None:
            raise
        logger.warning("%s", error)
        logger.warning("the search continues without it, results are kept until it answers")
        return client_of(uri)
    check_holds(client, uri, folder, run.parent_run_id)
    return client
