"""Reading searches and their trials from MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mlflow import MlflowClient
from mlflow.entities import Run

from vadtune.core.errors import TrackingError, unknown_name
from vadtune.tracking.store import CHECKPOINT, SEARCH_RUN, TRIAL_END, TRIAL_ID, child_runs, without_secrets


@dataclass(frozen=True)
class Trial:
    """A trial as the store holds it."""

    trial_id: str
    run_id: str
    name: str
    status: str
    end: str
    epoch: int
    params: dict[str, str]
    metrics: dict[str, float]
    checkpoint: str


@dataclass(frozen=True)
class SearchRun:
    """A search as the store holds it: its parent run."""

    name: str
    experiment: str
    experiment_id: str
    run_id: str
    status: str
    started: str
    tracking_uri: str
    tags: dict[str, str]
    params: dict[str, str]


def resolve_search(client: MlflowClient, uri: str, name: str) -> SearchRun:
    """Finds a search by the name of its experiment (then the latest search of it) or by its own unique name.

    Raises:
        TrackingError: There is none, listing the experiments there are.
    """
    experiments = {e.name: e.experiment_id for e in client.search_experiments() if e.name != "Default"}
    if name in experiments:
        ids, which = [experiments[name]], ""
    else:
        ids, which = list(experiments.values()), f" = '{name}'" if _is_plain(name) else ""
    if ids and (name in experiments or which):
        found = client.search_runs(
            ids,
            f"tags.`{SEARCH_RUN}`{which or ' != ' + repr('')}",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if found:
            return _search_run(found[0], {value: key for key, value in experiments.items()}, uri)
    if not experiments:
        raise TrackingError(
            f"the store {without_secrets(uri)} holds no experiment, got '{name}'; run `vadtune search` first"
        )
    raise TrackingError(f"{unknown_name('experiment', name, experiments)} (in {without_secrets(uri)})")


def list_searches(client: MlflowClient, uri: str, experiment: str | None = None) -> list[SearchRun]:
    """Returns the searches of a store, or of one experiment of it, newest first.

    Raises:
        TrackingError: There is no such experiment, listing those there are.
    """
    names = {e.experiment_id: e.name for e in client.search_experiments() if e.name != "Default"}
    if experiment is not None and experiment not in names.values():
        raise TrackingError(f"{unknown_name('experiment', experiment, names.values())} (in {without_secrets(uri)})")
    ids = [key for key, name in names.items() if experiment in (None, name)]
    found: list[Run] = []
    token: str | None = None
    while ids:
        page = client.search_runs(
            ids, f"tags.`{SEARCH_RUN}` != ''", order_by=["attributes.start_time DESC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            break
    return [_search_run(run, names, uri) for run in found]


def _search_run(run: Run, names: dict[str, str], uri: str) -> SearchRun:
    return SearchRun(
        name=run.data.tags[SEARCH_RUN],
        experiment=names[run.info.experiment_id],
        experiment_id=run.info.experiment_id,
        run_id=run.info.run_id,
        status=run.info.status,
        started=f"{datetime.fromtimestamp(run.info.start_time / 1000):%Y-%m-%d %H:%M}",
        tracking_uri=uri,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
    )


def list_trials(client: MlflowClient, search: SearchRun) -> list[Trial]:
    """Returns the trials of a search in the order they started."""
    trials = [
        Trial(
            trial_id=run.data.tags.get(TRIAL_ID, ""),
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status,
            end=run.data.tags.get(TRIAL_END, "running"),
            epoch=int(run.data.metrics.get("epoch", 0)),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            checkpoint=run.data.tags.get(CHECKPOINT, ""),
        )
        for run in child_runs(client, search.experiment_id, search.run_id)
    ]
    return sorted(trials, key=lambda trial: trial.name)


def _is_plain(name: str) -> bool:
    return all(character.isalnum() or character in "._-" for character in name)
