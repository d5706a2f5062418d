"""Reads searches and their trials from run folders, for when the MLflow store is lost or its server is gone."""

from __future__ import annotations

import functools
import json
import logging
import operator
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from vadtune.artifacts.run_folder import RUN_FILE, SEARCH_FILE, Run, read_run, run_folders
from vadtune.config import SearchFile, load_recorded_search
from vadtune.core.errors import SearchError, TrackingError
from vadtune.tracking.entries import Entry, forgotten_trials
from vadtune.tracking.places import checkpoint_here, store_beside
from vadtune.tracking.queries import SearchResults, SearchRun, Trial, find_results
from vadtune.tracking.spool import SPOOL_FILE, read_entries

logger = logging.getLogger(__name__)


def find_results_here(name: str, uri: str, storage: Path) -> SearchResults:
    """Reads a search and its trials from the store, or from its run folder where the store does not have it.

    Args:
        name: An experiment, whose latest search is read, the unique name of a search, or the path of its run folder.
        uri: The MLflow store.
        storage: The folder of run folders.

    Raises:
        TrackingError: Neither the store nor a run folder has it.
    """
    try:
        if (Path(name) / RUN_FILE).is_file():
            return find_results(read_run(Path(name)).run, uri, Path(name))
        return find_results(name, uri, storage)
    except TrackingError as error:
        folder = _find_folder(name, storage)
        if folder is None:
            raise
        logger.warning("%s", error)
        logger.warning("read from %s instead, which has all that was logged", folder)
        return read_results(folder)


def read_results(folder: Path) -> SearchResults:
    """Reads a search and its trials from its run folder.

    Raises:
        SearchError: The folder holds no search.
    """
    run = read_run(folder)
    try:
        entries = list(read_entries(folder))
    except OSError as error:
        raise SearchError(f"{folder}: holds no log of a search ({SPOOL_FILE} cannot be read: {error})") from error
    first = search_entry(folder)
    ends = [entry for entry in entries if entry["op"] in ("finish", "reopen")]
    tags, status = dict(first["tags"]), "RUNNING"
    for entry in ends:
        tags |= entry.get("tags", {})
        status = entry.get("status", "RUNNING")
    search = SearchRun(
        name=run.run,
        experiment=run.experiment,
        experiment_id=run.experiment_id,
        run_id=run.parent_run_id,
        status=status,
        started=f"{datetime.fromtimestamp(entries[0]['time'] / 1000):%Y-%m-%d %H:%M}" if entries else "",
        tracking_uri=store_beside(folder, run),
        tags=tags,
        params=first["params"],
    )
    trials = [
        replace(trial, checkpoint=checkpoint_here(trial.checkpoint, run.run, folder.absolute()))
        for trial in _trials(entries)
    ]
    return SearchResults(search, trials, search.metric)


def search_entry(folder: Path) -> Entry:
    """Returns what was logged about a search at its start; of an earlier version, which did not, its parameters alone.

    Raises:
        ConfigError: The search file cannot be read.
    """
    for entry in read_entries(folder):
        if entry["op"] == "search":
            return entry
    params = logged_params(load_recorded_search(folder / SEARCH_FILE))
    return {"op": "search", "time": 0, "params": params, "tags": {}, "artifacts": [SEARCH_FILE]}


def logged_params(search: SearchFile) -> dict[str, str]:
    """Returns the parameters of a search's parent run: fixed values, settings of the search, and domains."""

    def domain(key: str) -> str:
        return json.dumps(functools.reduce(operator.getitem, key.split("."), search.tree))

    fixed = {key: value for key, value in search.trial_config({}).flat().items() if key not in search.domains}
    settings = {f"search.{key}": value for key, value in search.search.model_dump().items() if key != "initial"}
    params = {**fixed, **settings, **{key: domain(key) for key in search.domains}}
    return {key: str(value) for key, value in params.items()}


def _find_folder(name: str, storage: Path) -> Path | None:
    """Returns the run folder of a search by its unique name or folder, or the latest one of an experiment."""
    for folder in (storage / name, Path(name)):
        if (folder / RUN_FILE).is_file():
            return folder
    found = [folder for folder in run_folders(storage) if _is_of(folder, name)]
    return max(found, key=lambda folder: folder.name, default=None)  # which holds when it was started


def _is_of(folder: Path, experiment: str) -> bool:
    try:
        run: Run = read_run(folder)
    except SearchError:
        return False
    return run.experiment == experiment


def _trials(entries: Sequence[Entry]) -> list[Trial]:
    """Returns the trials as the store would have them, in the order of their names; their run ids are unknown."""
    forgotten = forgotten_trials(entries)
    trials: dict[str, Trial] = {}
    for entry in entries:
        key = entry.get("trial")
        if key is None or key in forgotten:
            continue
        trial = trials.get(key) or Trial(key, "", key, "RUNNING", "running", 0, {}, {}, "")
        match entry["op"]:
            case "start":
                params = {**entry["params"], **trial.params}  # a trial that goes on keeps those it was begun with
                trial = replace(trial, name=entry["name"], status="RUNNING", params=params)
            case "metrics":
                metrics = {**trial.metrics, **entry["values"], "epoch": float(entry["epoch"])}
                trial = replace(trial, epoch=entry["epoch"], metrics=metrics)
            case "end":
                trial = replace(trial, **{name: entry[name] for name in ("status", "end", "checkpoint")})
        trials[key] = trial
    return sorted(trials.values(), key=lambda trial: trial.name)
