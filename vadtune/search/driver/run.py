"""Builds a search and runs it to its end."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune

from vadtune.artifacts.run_folder import SEARCH_FILE, Run, is_uri, local_folder, run_lock, write_run
from vadtune.config import SearchFile
from vadtune.core.errors import SearchError
from vadtune.core.files import is_full, write_atomically
from vadtune.core.processes import large_imports, last_words
from vadtune.search.algorithms.samplers import Searcher, sample_count
from vadtune.search.algorithms.schedulers import SCHEDULERS
from vadtune.search.driver.callbacks import BudgetStopper, SearchCallback, short_name
from vadtune.search.driver.progress import ProgressDisplay, duration
from vadtune.search.driver.ray_start import PendingRay, ended_with_ray
from vadtune.search.driver.session import SESSIONS, GpuMeter, Session
from vadtune.search.driver.signals import stop_signals
from vadtune.search.ray_compat import adapted_tune, asha_rungs, check_protective
from vadtune.search.resume.retries import MAX_RETRIES, is_transient_failure
from vadtune.search.resume.snapshot import atomic_snapshots
from vadtune.search.trials.placement import order_of, pack_size, place_trials, with_order
from vadtune.search.trials.trial_data import TrialData
from vadtune.tracking.commands import next_command
from vadtune.tracking.redact import without_secrets
from vadtune.tracking.run_log import logged_params
from vadtune.tracking.store import FOLDER, connect, tracking_uri
from vadtune.tracking.writer import Tracker

logger = logging.getLogger(__name__)

TUNE = "tune"
_SNAPSHOT_SHARE = 0.1  # of the time of a search, at most
_INTERRUPTED_SECONDS = 1.5  # how long Ctrl-C waits for the MLflow store; a resume sends the rest


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Attributes:
        run: Its unique name.
        experiment: Its MLflow experiment.
        tracking_uri: The MLflow store it was logged to.
        interrupted: Whether it was stopped by Ctrl-C and can be resumed.
        failures: Trial name -> reason, for trials that failed for reasons other than divergence.
        counts: Number of trials by how they ended.
        seconds: How long it took.
        best: The best score and the name of its trial; None without one.
        logged: Whether the MLflow store has everything; if not, `vadtune sync` delivers the rest.
        folder: Its folder.
    """

    run: str
    experiment: str
    tracking_uri: str
    interrupted: bool
    failures: dict[str, str]
    counts: dict[str, int]
    seconds: float
    best: tuple[float, str] | None
    logged: bool
    folder: Path


def run_search(
    search: SearchFile,
    data: TrialData,
    storage: str,
    store: str | None,
    pending: PendingRay,
    address: str | None = None,
) -> SearchOutcome:
    """Runs a search to its end; see ``start.start_search``, which checks the arguments.

    Args:
        search: The search file.
        data: Train and validation rows of the dataset that it names.
        storage: Folder or URI in which a folder for the search is made.
        store: The MLflow store; None for the one that ``tracking.tracking_uri`` returns.
        pending: The Ray that is being started.
        address: The cluster, if it is not on this machine alone.

    Raises:
        SearchError: This version of Ray cannot be used safely.
        TrackingError: The store does not answer.
    """
    check_protective()
    uri = tracking_uri(store)
    with large_imports():  # of the store's database library
        client = connect(uri)  # after all other checks, since it creates a store that is a file
    run = f"{search.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = local_folder(storage).absolute() / run
    kept = f"{storage.rstrip('/')}/{run}" if is_uri(storage) else str(folder)
    size = pack_size(search, pending.cores)
    search = with_order(search, size, pending.cores)
    where = f"{kept}/{TUNE}"
    recorded = where if is_uri(storage) else TUNE
    with _nothing_left(folder) as cleanup:
        write_atomically(folder / SEARCH_FILE, search.to_yaml().encode())
        tracker = Tracker(client, uri, search.name, run, folder)
        tracker.start(
            params=logged_params(search),
            tags={
                "vadtune.seed": str(search.search.seed),
                FOLDER: str(folder),
                "vadtune.masks": json.dumps(data.mask_hashes),
                "vadtune.scored": data.scored,
            },
            artifacts=[folder / SEARCH_FILE],
        )
        cleanup.callback(tracker.discard)  # ``start`` itself leaves no run if it fails
        ids = tracker.experiment_id, tracker.run_id
        write_run(folder, Run(run, search.name, *ids, without_secrets(uri), recorded, str(folder)))
    with run_lock(folder):
        return run_to_end(search, data, tracker, where, set(), pending, size, address)


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[contextlib.ExitStack]:
    """Deletes the folder of a search that cannot start, and calls what the block adds to the stack."""
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        yield cleanup
        cleanup.pop_all()  # it has started: nothing is called


def run_to_end(
    search: SearchFile,
    data: TrialData,
    tracker: Tracker,
    where: str,
    known: set[str],
    pending: PendingRay,
    size: int,
    address: str | None,
) -> SearchOutcome:
    """Runs a search, or the rest of one restored with the trials ``known``; Tune keeps its state at ``where``."""
    run = tracker.search
    start = time.monotonic()
    budget, total = search.search.time_budget_s, sample_count(search)
    trials = "trials until its budget is used up" if total is None else f"{total} trials"
    logger.info("search %s: %s; MLflow: %s", run, trials, without_secrets(tracker.uri))
    logger.info("scored on %s", data.scored)
    folder = tracker.folder
    resume = next_command(f"resume {run}", folder=folder, uri=tracker.uri, address=address)
    words = f"vadtune: error: search {run}: its process was ended from outside, or Ray's; resume it: {resume}"
    with last_words(words), ProgressDisplay(run, search.search.metric) as display, stop_signals() as interrupted:
        meter = GpuMeter(search.search.gpu_hours)
        deadline = None if budget is None else start + budget
        SESSIONS[run] = session = Session(search, tracker, display, total, interrupted, deadline, meter, known)
        try:
            pending.wait()
            session.order = order_of(search, data)
            with (
                ended_with_ray(),
                place_trials(search, data, size) as (trainable, slots),
                adapted_tune(
                    slots=slots,
                    order=session.order,
                    on_begin=lambda scheduler: session.share_rungs(asha_rungs(scheduler)),
                    is_local=pending.cores is not None,
                    is_interrupted=lambda: bool(interrupted),
                    is_transient=is_transient_failure,
                    snapshot_share=_SNAPSHOT_SHARE,
                ),
                atomic_snapshots(folder),
            ):
                session.pack_gpus = int(ray.cluster_resources().get("GPU", 0))  # each trains a pack, see place_trials
                tuner = _tuner(search, run, trainable, where.removesuffix(f"/{TUNE}"))
                if known:  # from the file that the line above has written anew, and the snapshot that was put back
                    tuner = tune.Tuner.restore(where, trainable=trainable, resume_unfinished=True)
                if not interrupted:  # before Tune listens for signals
                    _fit(tuner, session)
        except BaseException as error:
            tracker.abandon()
            if is_full(error):
                raise _full_disk(str(error), resume) from error
            if isinstance(error, KeyboardInterrupt):
                logger.info("resume it: %s", resume)
            raise
        finally:
            del SESSIONS[run]
    outcome = _finish(session, time.monotonic() - start)
    if session.full or tracker.is_unwritten:
        raise _full_disk(session.full or "its log could not be written", resume)
    return outcome


def _fit(tuner: tune.Tuner, session: Session) -> None:
    """Runs Tune to its end, whose result is not needed; a full disk may have cut short what it reads for that."""
    try:
        tuner.fit()
    except (EOFError, pickle.UnpicklingError):
        if not session.full and not session.has_all:
            raise


def _full_disk(reason: str, resume: str) -> SearchError:
    return SearchError(f"the disk of the search is full ({reason.partition(';')[0]}); make room, then: {resume}")


def _finish(session: Session, seconds: float) -> SearchOutcome:
    """Logs the end of a search to MLflow and to the log."""
    search, tracker, run = session.search, session.tracker, session.tracker.search
    counts = dict(session.counts())
    stopped_early = bool(session.signals) and not session.has_all
    metrics = {f"best_{search.search.metric}": session.best[0]} if session.best else {}
    if search.search.gpus_per_trial:
        metrics["gpu_hours"] = round(session.gpus.hours, 6)
    summary: dict[str, Any] = {"run": run, "trials": counts, "seconds": round(seconds, 1), "interrupted": stopped_early}
    summary |= ({"best_trial": session.best[1]} if session.best else {}) | metrics
    logged = tracker.finish(
        status="KILLED" if stopped_early else "FINISHED",
        metrics={f"trials_{end}": count for end, count in counts.items()} | metrics,
        tags={"vadtune.summary": json.dumps(summary), FOLDER: str(tracker.folder)},
        artifacts={"summary.json": json.dumps(summary, indent=1) + "\n"},
        at_most=_INTERRUPTED_SECONDS if stopped_early else None,
    )
    if not stopped_early:
        session.keep_last_models(time.time())
    logger.info("search %s: %s after %s", run, "interrupted" if stopped_early else "finished", duration(seconds))
    if not logged and not stopped_early:
        logger.warning(
            "the store %s did not accept the last results; they are kept, deliver them by: %s",
            *(without_secrets(tracker.uri), next_command(f"sync {run}", folder=tracker.folder, uri=tracker.uri)),
        )
    return SearchOutcome(
        run,
        search.name,
        tracker.uri,
        stopped_early,
        session.failures,
        counts,
        seconds,
        session.best,
        logged,
        tracker.folder,
    )


def _tuner(search: SearchFile, run: str, trainable: Any, storage: str) -> tune.Tuner:
    config, samples = search.search, sample_count(search)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1 if samples is None else samples,
            search_alg=Searcher(search),
            scheduler=SCHEDULERS[config.scheduler](search),
            metric=None if config.scheduler == "none" else config.metric,
            mode=None if config.scheduler == "none" else "min",
            reuse_actors=True,
            trial_name_creator=_trial_folder,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=storage,
            callbacks=[SearchCallback(run)],
            stop=BudgetStopper(run),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True),
            failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
            verbose=0,
        ),
    )


def _trial_folder(trial: Any) -> str:
    """Returns the name of a trial's folder; Tune keeps this function by its name for searches that are resumed."""
    return f"{short_name(trial)}-{trial.trial_id}"
