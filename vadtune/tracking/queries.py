"""Results: the trials of a search, found in MLflow, as rows, best first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vadtune.config import REPORTED_METRICS, SELECTABLE_METRICS
from vadtune.tracking import SearchRun, Trial, connect_existing, list_searches, list_trials, resolve_search

ENSEMBLE_TAG = "vadtune.ensemble"
"""The tag of a search's run that tells, in words, what its exported ensemble is worth."""

_ALWAYS = ("rank", "trial", "end", "epoch")


class SearchResults(NamedTuple):
    """A search and its trials, as MLflow holds them.

    Attributes:
        search: Its parent run.
        trials: In the order they started.
        metric: What the search selects on; lower is better.
    """

    search: SearchRun
    trials: list[Trial]
    metric: str


def find_results(name: str, uri: str) -> SearchResults:
    """Reads a search.

    Args:
        name: Of an experiment, for its latest search, or the unique name of a search.
        uri: The MLflow store.

    Raises:
        TrackingError: The store does not exist or does not answer, or holds no such search.
    """
    client = connect_existing(uri)
    search = resolve_search(client, uri, name)
    return SearchResults(search, list_trials(client, search), search.params.get("search.metric", SELECTABLE_METRICS[0]))


def search_rows(uri: str, experiment: str | None, *, running: Callable[[str], bool | None]) -> list[dict[str, object]]:
    """Returns a row per search, newest first: its names, its state, trials by how they ended, the best score.

    Args:
        uri: The MLflow store.
        experiment: Only searches of this name; None for all.
        running: Tells of a search's folder whether a process works on it; None where that cannot be known.

    Raises:
        TrackingError: The store does not exist or does not answer, or holds no such experiment.
    """
    client = connect_existing(uri)
    rows: list[dict[str, object]] = []
    for search in list_searches(client, uri, experiment):
        trials = list_trials(client, search)
        metric = search.params.get("search.metric", SELECTABLE_METRICS[0])
        best = ranked(trials, metric)
        status = [trial.status for trial in trials]
        rows.append(
            {
                "experiment": search.experiment,
                "search": search.name,
                "state": _state(search, running(search.tags.get("vadtune.folder", ""))),
                "started": search.started,
                "trials": len(trials),
                "completed": status.count("FINISHED"),
                "stopped": status.count("KILLED"),
                "failed": status.count("FAILED"),
                "metric": metric,
                "best": score_of(best[0], metric) if best else None,
            }
        )
    return rows


def _state(search: SearchRun, runs_here: bool | None) -> str:
    if search.status == "FINISHED":
        return "finished"
    if search.status == "RUNNING" and runs_here is not False:
        return "running"
    return "killed" if search.status == "RUNNING" else "interrupted" if search.status == "KILLED" else "failed"


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Returns the trials with a score, best first. A trial that failed has none: what it reported before it failed is
    no score of its configuration.
    """
    scored = [trial for trial in trials if trial.status != "FAILED" and math.isfinite(score_of(trial, metric))]
    return sorted(scored, key=lambda trial: (score_of(trial, metric), trial.name))


def score_of(trial: Trial, metric: str) -> float:
    """Returns the last reported value of a metric; NaN without one."""
    return trial.metrics.get(metric, math.nan)


def trial_rows(trials: Sequence[Trial], metric: str) -> list[dict[str, object]]:
    """Returns a row per trial: the ranked ones, best first, then the others.

    Columns: rank, trial, end, epoch, the metric that ranks, the other metrics, the parameters, where it is kept. All
    rows have all columns; what a trial lacks is None.
    """
    best = ranked(trials, metric)
    ranks = {trial.run_id: rank for rank, trial in enumerate(best, start=1)}
    metrics = [metric, *(name for name in REPORTED_METRICS if name != metric)]
    params = sorted({name for trial in trials for name in trial.params}, key=_section_order)
    return [
        {
            "rank": ranks.get(trial.run_id),
            "trial": trial.name,
            "end": trial.end,
            "epoch": trial.epoch,
            **{name: trial.metrics.get(name) for name in metrics},
            **{name: _plain(trial.params.get(name)) for name in params},
            "mlflow_run_id": trial.run_id,
            "checkpoint": trial.checkpoint or None,
        }
        for trial in [*best, *(trial for trial in trials if trial.run_id not in ranks)]
    ]


def main_columns(rows: Sequence[dict[str, object]], metric: str) -> list[dict[str, object]]:
    """Returns the rows reduced to what tells trials apart: rank, end, score, and the parameters that vary.

    One that exists in some trials only, and is the same in these, says no more than what it depends on.
    """
    varied = [
        name
        for name in (rows[0] if rows else {})
        if name.partition(".")[0] in ("model", "train", "infer")
        and len({repr(row[name]) for row in rows} - {"None"}) > 1
    ]
    return [
        {name.removeprefix("model.").removeprefix("train."): row[name] for name in (*_ALWAYS, metric, *varied)}
        for row in rows
    ]


def _section_order(name: str) -> tuple[int, str]:
    sections = ["model", "train", "infer", "data"]
    section = name.partition(".")[0]
    return (sections.index(section) if section in sections else -1), name


def _plain(value: str | None) -> object:
    """Returns a parameter as the number it is, where it is one; MLflow keeps text."""
    for kind in (int, float):
        try:
            return kind(value)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            continue
    return value
