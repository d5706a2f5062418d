"""Searches and trials as table rows, as ``vadtune list`` and ``vadtune results`` print them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vadtune.config import REPORTED_METRICS
from vadtune.core.errors import ConfigError, unknown_name
from vadtune.core.schema import as_number
from vadtune.tracking.queries import SearchRun, Trial, list_searches, list_trials, ranked
from vadtune.tracking.store import connect_existing
from vadtune.tracking.store_errors import readable_errors

_WORDS = {"True": True, "False": False, "None": None}
_ALWAYS = ("rank", "trial", "end", "epoch")
_SECTIONS = ("model", "train", "infer", "data")


def search_rows(
    uri: str, experiment: str | None, *, storage: Path, running: Callable[[Path], bool], disk: Callable[[Path], float]
) -> list[dict[str, object]]:
    """Returns one row per search, newest first: names, state, number of trials by outcome, best score, disk space.

    Args:
        uri: The MLflow store.
        experiment: Only searches of this experiment; None for all.
        storage: The folder of run folders.
        running: Maps a run folder to whether a process works on it.
        disk: Maps a run folder to its size in MB.

    Raises:
        TrackingError: The store does not exist, does not answer, or has no such experiment.
    """
    client = connect_existing(uri, to_read=True)

    def state(search: SearchRun, folder: Path | None) -> str:
        if search.status == "RUNNING":  # MLflow keeps this status for ever when the process was killed
            return "running" if folder is None or running(folder) else "killed"
        return {"FINISHED": "finished", "KILLED": "interrupted"}.get(search.status, "failed")

    with readable_errors(uri):
        return [
            {
                "experiment": search.experiment,
                "search": search.name,
                "state": state(search, folder),
                "started": search.started,
                **(_summary(search) or _counts(list_trials(client, search), search.metric)),
                "disk_mb": None if folder is None else disk(folder),
            }
            for search in list_searches(client, uri, experiment)
            for folder in [search.folder(storage)]
        ]


def _summary(search: SearchRun) -> dict[str, object] | None:
    """Returns the columns about trials that a finished search logged itself; None if it has not."""
    if search.status != "FINISHED":
        return None
    try:
        summary = json.loads(search.tags["vadtune.summary"])
        ends: dict[str, int] = summary["trials"]
        return {
            "trials": sum(ends.values()),
            "completed": ends.get("completed", 0),
            "stopped": ends.get("stopped", 0),
            "failed": ends.get("diverged", 0) + ends.get("error", 0),
            "metric": search.metric,
            "best": summary.get(f"best_{search.metric}"),
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _counts(trials: Sequence[Trial], metric: str) -> dict[str, object]:
    """Returns the columns about trials, from the trials."""
    best, status = ranked(trials, metric), [trial.status for trial in trials]
    return {
        "trials": len(trials),
        "completed": status.count("FINISHED"),
        "stopped": status.count("KILLED"),
        "failed": status.count("FAILED"),
        "metric": metric,
        "best": best[0].score(metric) if best else None,
    }


def trial_rows(trials: Sequence[Trial], metric: str) -> list[dict[str, object]]:
    """Returns one row per trial: the ranked trials, best first, then the others.

    Columns: rank, trial, end, epoch, the metric that ranks, the other metrics, the parameters, run id and checkpoint.
    Every row has every column; a value that a trial does not have is None.
    """
    best = ranked(trials, metric)
    ranks = {id(trial): rank for rank, trial in enumerate(best, start=1)}
    metrics = [metric, *(name for name in REPORTED_METRICS if name != metric)]
    params = sorted({name for trial in trials for name in trial.params}, key=_section_order)
    return [
        {
            "rank": ranks.get(id(trial)),
            "trial": trial.name,
            "end": trial.end,
            "epoch": trial.epoch,
            **{name: trial.metrics.get(name) for name in metrics},
            **{name: _value(trial.params.get(name)) for name in params},
            "mlflow_run_id": trial.run_id or None,
            "checkpoint": trial.checkpoint or None,
        }
        for trial in [*best, *(trial for trial in trials if id(trial) not in ranks)]
    ]


def main_columns(rows: Sequence[dict[str, object]], metric: str) -> list[dict[str, object]]:
    """Returns the rows reduced to rank, trial, end, epoch, score and the parameters that vary between trials.

    A parameter that only some trials have, with one value in all of these, does not count as varying.
    """
    params = [name for name in (rows[0] if rows else {}) if name.startswith(("model.", "train.", "infer."))]
    varied = [name for name in params if len({repr(row[name]) for row in rows} - {"None"}) > 1]
    names = {name: name.removeprefix("model.").removeprefix("train.") for name in (*_ALWAYS, metric, *varied)}
    return [{short: row[name] for name, short in names.items()} for row in rows]


def sorted_rows(rows: list[dict[str, object]], column: str | None, *, reverse: bool = False) -> list[dict[str, object]]:
    """Returns rows sorted by a column (None: by rank); rows without a value come last.

    Raises:
        ConfigError: No column has this name.
    """
    if not rows or (column is None and not reverse):
        return rows
    name = _column("--sort", column or "rank", rows)
    known = [row for row in rows if row[name] is not None]

    def by_value(row: dict[str, object]) -> tuple[bool, object]:
        return isinstance(row[name], str), row[name]  # numbers before texts

    known.sort(key=by_value, reverse=reverse)
    return [*known, *(row for row in rows if row[name] is None)]


def chosen_columns(rows: Sequence[dict[str, object]], columns: str) -> list[dict[str, object]]:
    """Returns the rows reduced to columns, given as ``trial,latent``; a column keeps the name it is asked for by.

    Raises:
        ConfigError: No column has such a name.
    """
    names = {short.strip(): _column("--columns", short.strip(), rows) for short in columns.split(",")}
    return [{short: row[name] for short, name in names.items()} for row in rows]


def _column(option: str, name: str, rows: Sequence[dict[str, object]]) -> str:
    """Returns the full name of a column that may be named as in the table, without its section."""
    columns = list(rows[0]) if rows else [name]
    for full in (name, *(f"{section}.{name}" for section in _SECTIONS)):
        if full in columns:
            return full
    raise ConfigError(f"{option}: {unknown_name('column', name, columns)}")


def _section_order(name: str) -> tuple[int, str]:
    section = name.partition(".")[0]
    return (_SECTIONS.index(section) if section in _SECTIONS else -1), name


def _value(text: str | None) -> object:
    """Returns a parameter, which MLflow stores as text, as the truth value, number or None that it is, or as text."""
    return _WORDS[text] if text in _WORDS else as_number(text)
