"""Reads searches and their trials from MLflow, and ranks trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run

from vadtune.config import SELECTABLE_METRICS
from vadtune.core.errors import TrackingError, unknown_name
from vadtune.tracking import store
from vadtune.tracking.places import checkpoint_here, find_run_folder
from vadtune.tracking.redact import without_secrets
from vadtune.tracking.store_errors import readable_errors

ENSEMBLE_TAG = "vadtune.ensemble"
"""Tag of a search's parent run: one line about its last exported ensemble and its scores."""
STORAGE = Path("runs")
"""The default folder of run folders."""
_NEWEST_FIRST = "attributes.start_time DESC"


@dataclass(frozen=True)
class Trial:
    """A trial as stored in MLflow.

    Attributes:
        status: MLflow's: RUNNING, FINISHED, KILLED (stopped early) or FAILED.
        end: Why it ended, in words.
        metrics: The last value of each metric.
        checkpoint: Absolute path, or URI, of its last checkpoint; empty without one.
    """

    trial_id: str
    run_id: str
    name: str
    status: str
    end: str
    epoch: int
    params: dict[str, str]
    metrics: dict[str, float]
    checkpoint: str

    def score(self, metric: str) -> float:
        """Returns the last value of a metric; NaN without one."""
        return self.metrics.get(metric, math.nan)


@dataclass(frozen=True)
class SearchRun:
    """The parent run of a search as stored in MLflow."""

    name: str
    experiment: str
    experiment_id: str
    run_id: str
    status: str
    started: str
    tracking_uri: str
    tags: dict[str, str]
    params: dict[str, str]

    @property
    def metric(self) -> str:
        """The metric that the search minimises."""
        return self.params.get("search.metric", SELECTABLE_METRICS[0])

    def folder(self, storage: Path = STORAGE) -> Path | None:
        """Returns its run folder, looked for in ``storage`` first; None if it is not on this machine."""
        return find_run_folder(self.name, self.tags.get(store.FOLDER, ""), self.tracking_uri, storage)


class SearchResults(NamedTuple):
    """A search, its trials in the order they started, and the metric that the search minimises."""

    search: SearchRun
    trials: list[Trial]
    metric: str


def find_results(name: str, uri: str, storage: Path = STORAGE) -> SearchResults:
    """Reads a search and its trials from the store, and changes nothing there.

    Args:
        name: An experiment, whose latest search is read, or the unique name of a search.
        uri: The MLflow store.
        storage: The folder of run folders, or the run folder, in which checkpoints are looked for first.

    Raises:
        TrackingError: The store does not exist, does not answer, or has no such search.
    """
    client = store.connect_existing(uri, to_read=True)
    with readable_errors(uri):
        search = resolve_search(client, uri, name)
        return SearchResults(search, list_trials(client, search, storage), search.metric)


def resolve_search(client: MlflowClient, uri: str, name: str) -> SearchRun:
    """Finds a search by its experiment (then the latest search of it) or by its unique name.

    Raises:
        TrackingError: No search has this name; the message lists the experiments.
    """
    experiments = _experiments(client)
    ids = [key for key, experiment in experiments.items() if experiment == name]
    condition = f"tags.`{store.SEARCH_RUN}` != ''"
    if not ids and all(character.isalnum() or character in "._-" for character in name):  # safe inside a filter
        ids, condition = list(experiments), f"tags.`{store.SEARCH_RUN}` = '{name}'"
    if ids:
        found = client.search_runs(ids, condition, order_by=[_NEWEST_FIRST], max_results=1)
        if found:
            return _search_run(found[0], experiments, uri)
    if not experiments:
        raise TrackingError(
            f"the store {without_secrets(uri)} has no experiment yet, got '{name}'; run `vadtune search` first"
        )
    raise TrackingError(f"{unknown_name('experiment', name, experiments.values())} (in {without_secrets(uri)})")


def list_searches(client: MlflowClient, uri: str, experiment: str | None = None) -> list[SearchRun]:
    """Returns the searches of a store, or of one experiment, newest first.

    Raises:
        TrackingError: No experiment has this name; the message lists the experiments.
    """
    names = _experiments(client)
    if experiment is not None and experiment not in names.values():
        raise TrackingError(f"{unknown_name('experiment', experiment, names.values())} (in {without_secrets(uri)})")
    ids = [key for key, name in names.items() if experiment in (None, name)]
    return [
        _search_run(run, names, uri)
        for run in store.find_runs(client, ids, f"tags.`{store.SEARCH_RUN}` != ''", _NEWEST_FIRST)
    ]


def list_trials(client: MlflowClient, search: SearchRun, storage: Path = STORAGE) -> list[Trial]:
    """Returns the trials of a search in the order they started, with checkpoints as ``find_results`` finds them."""
    folder = search.folder(storage)
    trials = [
        Trial(
            trial_id=run.data.tags.get(store.TRIAL_ID, ""),
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status,
            end=run.data.tags.get(store.TRIAL_END, "running"),
            epoch=int(run.data.metrics.get("epoch", 0)),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            checkpoint=checkpoint_here(
                run.data.tags.get(store.CHECKPOINT, ""), search.name, folder, search.tags.get(store.FOLDER, "")
            ),
        )
        for run in store.child_runs(client, search.experiment_id, search.run_id)
    ]
    return sorted(trials, key=lambda trial: trial.name)


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Returns the trials that have a score, best (lowest) first; failed trials are left out.

    What a trial reported before it failed is not a score of its configuration.
    """
    scored = [trial for trial in trials if trial.status != "FAILED" and math.isfinite(trial.score(metric))]
    return sorted(scored, key=lambda trial: (trial.score(metric), trial.name))


def _experiments(client: MlflowClient) -> dict[str, str]:
    """Returns id -> name of the experiments, without the empty one that MLflow creates."""
    return {e.experiment_id: e.name for e in store.list_experiments(client) if e.name != "Default"}


def _search_run(run: Run, names: dict[str, str], uri: str) -> SearchRun:
    return SearchRun(
        name=run.data.tags[store.SEARCH_RUN],
        experiment=names[run.info.experiment_id],
        experiment_id=run.info.experiment_id,
        run_id=run.info.run_id,
        status=run.info.status,
        started=f"{datetime.fromtimestamp(run.info.start_time / 1000):%Y-%m-%d %H:%M}",
        tracking_uri=uri,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
    )
