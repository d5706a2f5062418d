"""Builds, runs and resumes a search."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

# Read when Ray is imported. Nothing about a user's work leaves the machine unless the user turns it on; results are
# logged by our own callback; the snapshot a resume starts from is written every second, not every ten. Off a cluster Ray
# asks for the address of the machine's network card even if told 127.0.0.1, unless clusters are "not enabled".
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import optuna
import ray
from ray import tune

from vadtune.data import load_dataset
from vadtune.errors import SearchError
from vadtune.files import check_writable, write_atomically
from vadtune.search.callbacks import SESSIONS, SearchCallback, Session
from vadtune.search.progress import ProgressDisplay, duration
from vadtune.search.samplers import Searcher, sample_count
from vadtune.search.schedulers import EPOCH, SCHEDULERS
from vadtune.search.trainable import TrainTrial
from vadtune.search_file import SearchFile, load_search
from vadtune.tracking import Tracker, connect, without_secrets

logger = logging.getLogger(__name__)

_SEARCH_FILE, _RUN_FILE, _TUNE = "search.yaml", "run.json", "tune"
_OBJECT_STORE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Attributes:
        run: Its unique name.
        experiment: Its MLflow experiment.
        interrupted: Whether it was stopped by Ctrl-C and can be resumed.
        failures: Trial name -> reason, for trials that failed for reasons other than divergence.
        counts: Number of trials by how they ended.
        seconds: How long it took.
    """

    run: str
    experiment: str
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
        SearchError: The folder cannot be written; nothing was started.
    """
    check_writable(storage)
    client = connect(tracking_uri)
    dataset = load_dataset(search.data)
    run = f"{search.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = storage.absolute() / run
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SearchError(
            f"{storage}: cannot be written ({error.strerror}); name another folder by --storage"
        ) from error
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
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1, checkpoint_at_end=True),
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )

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
    search = load_search(folder / _SEARCH_FILE)
    client = connect(uri)
    if client.get_run(parent).info.status == "FINISHED":
        return None
    path = folder / _TUNE
    dataset = load_dataset(search.data)
    tracker = Tracker(client, uri, search.name, run)
    tracker.reopen(parent)
    trainable = _trainable(search, dataset)
    if not tune.Tuner.can_restore(path):
        raise SearchError(f"{folder}: it ended before its first snapshot, nothing to resume; start it again")

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
    with local_ray(), ProgressDisplay(run, search.search.metric) as display, _signals() as interrupted:
        session = Session(search, tracker, display, total, None if budget is None else start + budget)
        SESSIONS[run] = session
        try:
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
    return SearchOutcome(run, search.name, stopped_early, session.failures, counts, seconds)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Starts a local Ray that listens on loopback only, without dashboard; one that runs already is used and left."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Makes the first Ctrl-C (or SIGTERM) stop Tune cleanly: it saves its state and returns.

    Tune listens to SIGUSR1 for that; taking its way keeps the knowledge of an interruption here. A second Ctrl-C ends
    the process.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        logger.info("stopping: saving the state of the search (Ctrl-C again to quit at once)")
        os.kill(os.getpid(), signal.SIGUSR1)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    before = signal.getsignal(signal.SIGUSR1)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGUSR1, before)
        del os.environ["TUNE_DISABLE_SIGINT_HANDLER"]


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)


def domain_text(search: SearchFile, key: str) -> str:
    """Returns a domain as the search file writes it, for the parent run's parameters."""
    node: Any = search.tree
    for part in key.split("."):
        node = node[part]
    return json.dumps(node)


__all__ = ["EPOCH", "SearchOutcome", "resume_search", "start_search"]
