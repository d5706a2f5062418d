"""Builds, runs and resumes a search."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ray import tune

from vadtune.data import load_dataset
from vadtune.errors import SearchError
from vadtune.files import check_writable, write_atomically
from vadtune.search.callbacks import SESSIONS, SearchCallback, Session
from vadtune.search.process import check_resources, local_ray, only_here, stop_signals
from vadtune.search.progress import ProgressDisplay, duration
from vadtune.search.recovery import MAX_RETRIES, bounded_retries
from vadtune.search.samplers import Searcher, sample_count
from vadtune.search.schedulers import SCHEDULERS
from vadtune.search.trainable import TrainTrial
from vadtune.search_file import SearchFile, load_search
from vadtune.tracking import HIDDEN, Tracker, connect, connect_existing, without_secrets
from vadtune.tracking import tracking_uri as default_tracking_uri

logger = logging.getLogger(__name__)

_SEARCH_FILE, _RUN_FILE, _TUNE = "search.yaml", "run.json", "tune"


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
    """

    run: str
    experiment: str
    tracking_uri: str
    interrupted: bool
    failures: dict[str, str]
    counts: dict[str, int]
    seconds: float


def start_search(search: SearchFile, *, storage: Path, tracking_uri: str) -> SearchOutcome:
    """Runs a search to its end.

    Args:
        search: The search file.
        storage: Folder in which the search gets a folder of its own.
        tracking_uri: The MLflow store.

    Raises:
        TrackingError: The store does not answer; nothing was started.
        VadtuneError: The folder cannot be written; nothing was started.
        ConfigError: A trial asks for more cores or GPUs than there are; nothing was started.
    """
    check_resources(search.search)
    check_writable(storage)
    client = connect(tracking_uri)
    dataset = load_dataset(search.data)
    run = f"{search.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = storage.absolute() / run
    write_atomically(folder / _SEARCH_FILE, search.to_yaml().encode())
    tracker = Tracker(client, tracking_uri, search.name, run)
    fixed = {key: value for key, value in search.trial_config({}).flat().items() if key not in search.domains}
    settings = {f"search.{key}": value for key, value in search.search.model_dump().items() if key != "initial"}
    tracker.start(
        params={**fixed, **settings, **{key: domain_text(search, key) for key in search.domains}},
        tags={"vadtune.seed": str(search.search.seed), "vadtune.folder": str(folder)},
        artifacts=[folder / _SEARCH_FILE],
    )
    details = {"run": run, "experiment": search.name, "parent_run_id": tracker.run_id}
    details["tracking_uri"] = without_secrets(tracking_uri)
    write_atomically(folder / _RUN_FILE, (json.dumps(details, indent=1) + "\n").encode())

    def build() -> tune.Tuner:
        config = search.search
        return tune.Tuner(
            _trainable(search, dataset),
            tune_config=tune.TuneConfig(
                num_samples=sample_count(search),
                search_alg=Searcher(search),
                scheduler=SCHEDULERS[config.scheduler](config, search.epochs),
                metric=None if config.scheduler == "none" else config.metric,
                mode=None if config.scheduler == "none" else "min",
                time_budget_s=config.time_budget_s,
                reuse_actors=True,
                trial_name_creator=_trial_folder,
                trial_dirname_creator=_trial_folder,
            ),
            run_config=tune.RunConfig(
                name=_TUNE,
                storage_path=str(folder),
                callbacks=[SearchCallback(run)],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True),
                failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
                verbose=0,
            ),
        )

    with only_here(folder):
        return _run(search, run, tracker, build)


def resume_search(folder: Path, *, tracking_uri: str | None) -> SearchOutcome | None:
    """Completes a search that was interrupted or killed.

    Args:
        folder: The search's own folder.
        tracking_uri: The MLflow store; None for the one the search was started with.

    Returns:
        How it ended, or None if nothing was left to do.

    Raises:
        SearchError: The folder holds no search that can be resumed.
        TrackingError: The store does not answer or does not hold the search.
    """
    try:
        details = json.loads((folder / _RUN_FILE).read_text())
        run, uri, parent = details["run"], tracking_uri or details["tracking_uri"], details["parent_run_id"]
    except (OSError, ValueError, KeyError) as error:
        raise SearchError(f"{folder}: holds no search to resume ({_RUN_FILE} cannot be read: {error})") from error
    if tracking_uri is None and HIDDEN in uri:  # the password was not written down
        uri = default_tracking_uri(None)
    search = load_search(folder / _SEARCH_FILE)
    check_resources(search.search)
    with only_here(folder):
        tracker = Tracker(connect_existing(uri), uri, search.name, run)
        trainable = _trainable(search, load_dataset(search.data))
        path = folder / _TUNE
        if not tune.Tuner.can_restore(path):
            raise SearchError(f"{folder}: it ended before its first snapshot, nothing to resume; start it again")
        if not tracker.reopen(parent):
            return None

        def build() -> tune.Tuner:
            return tune.Tuner.restore(str(path), trainable=trainable, resume_unfinished=True)

        return _run(search, run, tracker, build)


def _trainable(search: SearchFile, dataset: Any) -> Any:
    resources = {"CPU": search.search.cpus_per_trial, "GPU": search.search.gpus_per_trial}
    with_data = tune.with_parameters(
        TrainTrial,
        search=search,
        data=dataset.search_data,
        scaler=dataset.scaler,
        feature_names=dataset.feature_names,
    )
    return tune.with_resources(with_data, resources)


def _run(search: SearchFile, run: str, tracker: Tracker, build: Callable[[], tune.Tuner]) -> SearchOutcome:
    start = time.monotonic()
    budget = search.search.time_budget_s
    total = sample_count(search)
    logger.info("search %s: %d trials; MLflow: %s", run, total, without_secrets(tracker.uri))
    with ProgressDisplay(run, search.search.metric) as display, stop_signals() as interrupted:
        session = Session(search, tracker, display, total, interrupted, None if budget is None else start + budget)
        SESSIONS[run] = session
        try:
            with local_ray(), bounded_retries():
                build().fit()
        except BaseException:
            tracker.abandon()
            raise
        finally:
            del SESSIONS[run]
    seconds = time.monotonic() - start
    counts = dict(session.counts())
    stopped_early = bool(interrupted) and len(session.ended) < total
    summary = {"run": run, "trials": counts, "seconds": round(seconds, 1), "interrupted": stopped_early}
    if session.best:
        summary |= {"best_trial": session.best[1], f"best_{search.search.metric}": session.best[0]}
    tracker.finish(
        status="KILLED" if stopped_early else "FINISHED",
        metrics={f"trials_{end}": count for end, count in counts.items()}
        | ({f"best_{search.search.metric}": session.best[0]} if session.best else {}),
        tags={"vadtune.summary": json.dumps(summary)},
        artifacts={"summary.json": json.dumps(summary, indent=1) + "\n"},
    )
    logger.info("search %s: %s after %s", run, "interrupted" if stopped_early else "finished", duration(seconds))
    return SearchOutcome(run, search.name, tracker.uri, stopped_early, session.failures, counts, seconds)


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)


def domain_text(search: SearchFile, key: str) -> str:
    """Returns a domain as the search file writes it, for the parent run's parameters."""
    node: Any = search.tree
    for part in key.split("."):
        node = node[part]
    return json.dumps(node)
