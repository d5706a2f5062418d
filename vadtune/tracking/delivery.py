"""Sends the lines of a spool to the MLflow store in order, with many values per commit.

Sending a line twice (after a crash between the store's answer and the delivery mark) changes nothing: MLflow identifies
a metric value by its timestamp, which is the time of the report, and a trial's run is looked up before it is created.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from vadtune.tracking.spool import Entry, Spool
from vadtune.tracking.store import CHECKPOINT, PARENT, TRIAL_END, TRIAL_ID, child_runs

logger = logging.getLogger(__name__)

_PER_CALL = 900  # MLflow accepts at most 1,000 metrics per call


@dataclass
class _Changes:
    """The pending writes of one trial."""

    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    status: str | None = None
    time: int = 0


class Delivery:
    """Sends the spool of one search to the store.

    Args:
        client: Client of the store.
        experiment_id: The search's experiment.
        parent_run_id: The search's parent run.
        spool: The spool of the search.
        new: Whether the store has no trial runs of this search yet, so that none are looked up.
    """

    def __init__(
        self, client: MlflowClient, experiment_id: str, parent_run_id: str, spool: Spool, *, new: bool = False
    ) -> None:
        self._client, self._experiment_id, self._parent = client, experiment_id, parent_run_id
        self._spool = spool
        self._runs: dict[str, str] | None = {} if new else None  # trial id -> run id; None: look them up
        self._names = {entry["trial"]: entry["name"] for entry in spool.entries() if entry["op"] == "start"}

    def deliver(self) -> bool:
        """Sends the next undelivered lines.

        Returns:
            Whether the spool had any.

        Raises:
            Exception: The store failed; the type depends on it. The lines stay in the spool for the next call.
        """
        entries, mark = self._spool.take()
        if not entries:
            return False
        try:
            self._write(entries)
        except Exception:
            self._runs = None  # a run may have been created although the answer was lost
            raise
        self._spool.mark_delivered(mark)
        return True

    def _write(self, entries: Iterable[Entry]) -> None:
        changes: dict[str, _Changes] = {}
        for entry in entries:
            change = changes.setdefault(entry["trial"], _Changes()) if "trial" in entry else _Changes()
            change.time = entry["time"]
            match entry["op"]:
                case "start":
                    self._names[entry["trial"]] = entry["name"]
                    change.params, change.status = entry["params"], "RUNNING"
                case "metrics":
                    step = entry["epoch"]
                    values = {**entry["values"], "epoch": step}
                    change.metrics += [Metric(name, float(value), change.time, step) for name, value in values.items()]
                case "tags":
                    change.tags |= entry["tags"]
                case "end":
                    change.tags |= {TRIAL_END: entry["end"], CHECKPOINT: entry["checkpoint"]}
                    change.status = entry["status"]
                case "forget":
                    self._write_trials(changes)
                    self._forget_all_but(set(entry["keep"]))
                case "reopen":
                    self._client.update_run(self._parent, status="RUNNING")
                case "finish":
                    self._write_trials(changes)
                    self._finish(entry)
        self._write_trials(changes)

    def _write_trials(self, changes: dict[str, _Changes]) -> None:
        for trial, change in changes.items():
            try:
                self._write_trial(trial, change)
            except MlflowException:
                if not self._was_deleted(trial):
                    raise
                logger.warning("%s: its run was deleted in MLflow; its values are skipped", self._names[trial])
        changes.clear()

    def _write_trial(self, trial: str, change: _Changes) -> None:
        runs = self._trial_runs()
        if trial not in runs:
            tags = {PARENT: self._parent, TRIAL_ID: trial, "mlflow.source.name": "vadtune"}
            name = self._names[trial]
            run = self._client.create_run(self._experiment_id, start_time=change.time, tags=tags, run_name=name)
            runs[trial] = run.info.run_id
        elif change.params:  # it goes on
            change.params = self._new_params(trial, change.params)
            if change.status == "RUNNING":
                self._client.update_run(runs[trial], status="RUNNING")
        run_id = runs[trial]
        params = [Param(key, str(value)) for key, value in change.params.items()]
        tags_ = [RunTag(key, value) for key, value in change.tags.items()]
        for start in range(0, max(1, len(change.metrics)), _PER_CALL):
            metrics = change.metrics[start : start + _PER_CALL]
            if metrics or params or tags_:
                self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags_)
            params, tags_ = [], []
        if change.status not in (None, "RUNNING"):
            self._client.set_terminated(run_id, status=change.status, end_time=change.time)

    def _new_params(self, trial: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those parameters of a trial that goes on that its run lacks; MLflow refuses to change a parameter."""
        logged = self._client.get_run(self._trial_runs()[trial]).data.params
        changed = [key for key, value in params.items() if logged.get(key, str(value)) != str(value)]
        if changed:
            old = ", ".join(f"{key} {logged[key]}" for key in changed[:3])
            name = self._names[trial]
            logger.warning("%s goes on with other parameters, its run keeps those it was begun with: %s", name, old)
        return {key: value for key, value in params.items() if key not in logged}

    def _trial_runs(self) -> dict[str, str]:
        if self._runs is None:
            found = child_runs(self._client, self._experiment_id, self._parent)
            self._runs = {run.data.tags.get(TRIAL_ID, ""): run.info.run_id for run in found}
        return self._runs

    def _was_deleted(self, trial: str) -> bool:
        run_id = (self._runs or {}).get(trial)
        return run_id is not None and self._client.get_run(run_id).info.lifecycle_stage == "deleted"

    def _forget_all_but(self, keep: set[str]) -> None:
        runs = self._trial_runs()
        for trial in set(runs) - keep:
            self._client.delete_run(runs.pop(trial))

    def _finish(self, entry: Entry) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in entry["artifacts"].items():
                (Path(folder) / name).write_text(text)
                self._client.log_artifact(self._parent, str(Path(folder) / name))
        log_to_run(self._client, self._parent, metrics=entry["metrics"], tags=entry["tags"], time_ms=entry["time"])
        self._client.set_terminated(self._parent, status=entry["status"], end_time=entry["time"])


def log_to_run(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Iterable[Path] = (),
    time_ms: int | None = None,
) -> None:
    """Adds metrics, tags and files to an existing run, in any state."""
    now = int(time.time() * 1000) if time_ms is None else time_ms
    client.log_batch(
        run_id,
        metrics=[Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()],
        tags=[RunTag(key, value) for key, value in (tags or {}).items()],
    )
    for path in artifacts:
        client.log_artifact(run_id, str(path), artifact_path=path.parent.name)
