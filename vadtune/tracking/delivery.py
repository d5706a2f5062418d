"""Sends the lines of a spool to the MLflow store in order, with many values per commit.

Sending a line twice (after a crash between the store's answer and the delivery mark) changes nothing: MLflow identifies
a metric value by its timestamp, which is the time of the report, and a run is looked up before it is created.

The lines of each trial are sent on their own. Where the store rejects them, each line is sent alone, and those that it
rejects are set aside (see ``rejected``), so that no line holds up the others.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from vadtune.config import DATA_PATHS
from vadtune.tracking.entries import DAMAGED, Entry, forgotten_trials
from vadtune.tracking.redact import short_reason
from vadtune.tracking.rejected import RejectedLines
from vadtune.tracking.runs import TrialRuns, check_parent, is_empty, parent_runs
from vadtune.tracking.spool import Spool
from vadtune.tracking.store import CHECKPOINT, TRIAL_END, child_runs
from vadtune.tracking.store_errors import RejectedError, is_rejection

logger = logging.getLogger(__name__)

_METRICS_PER_CALL, _PER_CALL = 800, 100  # MLflow accepts at most 1,000 values, of them 100 parameters and 100 tags
_PATHS = {f"data.{key}" for key in DATA_PATHS}  # which a search that is resumed elsewhere may change
_CUT = 5000  # characters of a parameter that are compared; MLflow keeps 6,000


@dataclass
class _Changes:
    """The pending writes of one trial."""

    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    starts: bool = False
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
        rejected: Where rejected lines are set aside; None for the file in the search's folder.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        parent_run_id: str,
        spool: Spool,
        *,
        new: bool = False,
        rejected: RejectedLines | None = None,
    ) -> None:
        self._client, self._experiment_id, self._parent = client, experiment_id, parent_run_id
        self._spool = spool
        self.rejected = RejectedLines(spool.folder) if rejected is None else rejected
        self._runs = TrialRuns(client, experiment_id, parent_run_id, new=new)
        self._doubtful = not new  # whether the store may have doubles of runs
        self._taken: list[Entry] = []  # taken from the spool, and not sent yet
        self._mark: int | None = None  # what to record once they are
        self.sent = 0  # lines so far
        self._names = {entry["trial"]: entry["name"] for entry in spool.entries() if entry["op"] == "start"}
        self._forgotten = forgotten_trials(spool.entries())

    def deliver(self) -> bool:
        """Sends the next undelivered lines.

        Returns:
            Whether the spool had any.

        Raises:
            SearchGoneError: The parent run or the experiment was deleted.
            Exception: The store failed; the type depends on it. The lines stay in the spool for the next call.
        """
        if not self._taken:
            self._taken, self._mark = self._spool.take()
        if not self._taken:
            return False
        self._undo_unless_done(lambda: self._write(self._taken))
        self._taken = []
        if self._mark is not None:
            self._spool.mark_delivered(self._mark)
        return True

    def retry_rejected(self) -> None:
        """Lets the next ``deliver`` send all lines of the trials with rejected lines again, so they end as logged."""
        trials = self.rejected.trials()
        self.rejected.remove(trials)
        self.rejected.keep()
        self._taken = [entry for entry in self._spool.entries() if entry.get("trial") in trials]
        self._mark = None

    def settle(self) -> None:
        """Ends the runs that a search that has ended left open, and deletes doubles; to be called after all lines.

        Where the store refuses to do so, a warning says why.

        Raises:
            Exception: As ``deliver``.
        """
        try:
            self._undo_unless_done(lambda: _each([self._delete_doubles, self._end_open]))
        except Exception as error:
            if not is_rejection(error):
                raise
            reason = short_reason(error, self._client.tracking_uri)
            logger.warning("the store refuses to end or delete runs that were left open: %s", reason)
        else:
            self._doubtful = False

    def _undo_unless_done(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self._runs.forget()
            self._doubtful = True
            self.rejected.roll_back()
            raise
        self.rejected.save()  # before the lines are marked as delivered

    def _replay(self, trials: set[str | None]) -> None:
        self._write(entry for entry in self._spool.entries() if entry.get("trial") in trials)

    def _write(self, entries: Iterable[Entry]) -> None:
        """Sends lines, those of each trial together; what was sent is not sent again if a later call fails."""
        by_trial: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in list(entries):
            if entry["op"] == DAMAGED:
                self.rejected.add(entry, f"the line is damaged: it {entry['reason']}")
                self._done([entry])
                continue
            if entry["op"] == "start":
                self._names[entry["trial"]] = entry["name"]
            if "trial" in entry:
                by_trial[entry["trial"]].append(entry)
                continue
            self._write_trials(by_trial)
            self._send([entry], self._write_search)
            self._done([entry])
        self._write_trials(by_trial)

    def _write_trials(self, by_trial: dict[str, list[Entry]]) -> None:
        for trial, entries in by_trial.items():
            if trial not in self._forgotten:
                self._send(entries, self._write_trial)
            self._done(entries)
        by_trial.clear()

    def _done(self, entries: Sequence[Entry]) -> None:
        self.sent += len(entries)
        if self._taken:
            self.rejected.keep()
            done = set(map(id, entries))
            self._taken = [entry for entry in self._taken if id(entry) not in done]

    def _send(self, entries: Sequence[Entry], write: Callable[[Sequence[Entry]], None]) -> None:
        """Sends lines in one go, or one by one if the store rejects them, and sets aside those it rejects alone."""
        try:
            write(entries)
        except Exception as error:
            if not is_rejection(error):
                raise
            uri = self._client.tracking_uri
            check_parent(self._client, uri, self._spool.folder, self._parent)
            if not isinstance(error, RejectedError):
                self._runs.forget()  # a run that was deleted is found by looking it up
                if len(entries) > 1 or self._is_deleted(entries[0]):
                    for entry in entries:
                        self._send([entry], write)
                    return
            for entry in entries:
                self.rejected.add(entry, short_reason(error, uri))

    def _is_deleted(self, entry: Entry) -> bool:
        run = self._runs.find(entry["trial"]) if "trial" in entry else None
        return run is not None and run.info.lifecycle_stage == "deleted"

    def _write_trial(self, entries: Sequence[Entry]) -> None:
        trial: str = entries[0]["trial"]
        change, name = _changes(entries), self._names.get(trial, trial)
        run = self._runs.find(trial)
        if run is None:
            run = self._runs.create(trial, name, change.time)
        elif run.info.lifecycle_stage == "deleted":
            raise RejectedError(f"{name}: its run was deleted in MLflow")
        elif change.starts:  # it goes on
            change.params = self._new_params(name, run, change.params)
            new_name = name if run.info.run_name == trial else None  # a line of it came before its start
            status = "RUNNING" if change.status == "RUNNING" else None
            if new_name or status:
                self._client.update_run(run.info.run_id, status=status, name=new_name)
        run_id = run.info.run_id
        log_all(self._client, run_id, metrics=change.metrics, params=change.params, tags=change.tags)
        if change.status not in (None, "RUNNING"):
            self._client.set_terminated(run_id, status=change.status, end_time=change.time)

    def _new_params(self, name: str, run: Run, params: Mapping[str, str]) -> dict[str, str]:
        """Returns those parameters of a trial that goes on that its run lacks; MLflow refuses to change a parameter."""
        logged = self._client.get_run(run.info.run_id).data.params
        known = {key: logged.get(key, value) for key, value in params.items() if key not in _PATHS}
        changed = [key for key, value in known.items() if value[:_CUT] != params[key][:_CUT]]
        if changed:
            old = ", ".join(f"{key} {logged[key]}" for key in changed[:3])
            logger.warning("%s goes on with other parameters, its run keeps those it was begun with: %s", name, old)
        return {key: value for key, value in params.items() if key not in logged}

    def _write_search(self, entries: Sequence[Entry]) -> None:
        (entry,) = entries
        match entry["op"]:
            case "search":
                _each([lambda: self._describe(entry), *(partial(self._log_file, path) for path in self._files(entry))])
            case "forget":
                self._forgotten = forgotten_trials(self._spool.entries())
                for trial in self._runs.trials() & self._forgotten:
                    self._runs.delete(trial)
            case "reopen":
                self._client.update_run(self._parent, status="RUNNING")
            case "finish":
                _each([lambda: self._end(entry), lambda: self._set_ended(entry), lambda: self._log_texts(entry)])

    def _describe(self, entry: Entry) -> None:
        logged = self._client.get_run(self._parent).data.params  # MLflow refuses to change a parameter
        params = {key: value for key, value in entry["params"].items() if key not in logged}
        log_all(self._client, self._parent, params=params, tags=entry["tags"])

    def _files(self, entry: Entry) -> list[Path]:
        paths = [self._spool.folder / name for name in entry["artifacts"]]
        return [path for path in paths if path.is_file() and not path.is_symlink()]

    def _log_file(self, path: Path) -> None:
        self._client.log_artifact(self._parent, str(path))

    def _log_texts(self, entry: Entry) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in entry["artifacts"].items():
                (Path(folder) / name).write_text(text)
                self._log_file(Path(folder) / name)

    def _end(self, entry: Entry) -> None:
        log_to_run(self._client, self._parent, metrics=entry["metrics"], tags=entry["tags"], time_ms=entry["time"])

    def _set_ended(self, entry: Entry) -> None:
        self._client.set_terminated(self._parent, status=entry["status"], end_time=entry["time"])

    def _end_open(self) -> None:
        ends = [entry for entry in self._spool.entries() if entry["op"] in ("finish", "reopen")]
        if not ends or ends[-1]["op"] == "reopen":
            return
        running = child_runs(self._client, self._experiment_id, self._parent, condition="status = 'RUNNING'")
        steps = [partial(self._end_trial, run, ends[-1]["time"]) for run in running]
        if self._client.get_run(self._parent).info.status == "RUNNING":
            steps.append(partial(self._set_ended, ends[-1]))
        _each(steps)

    def _end_trial(self, run: Run, time: int) -> None:
        self._client.set_terminated(run.info.run_id, status="KILLED", end_time=time)
        if TRIAL_END not in run.data.tags:
            log_all(self._client, run.info.run_id, tags={TRIAL_END: "interrupted"})

    def _delete_doubles(self) -> None:
        if not self._doubtful:
            return
        for trial, double in self._runs.look_up():
            if not is_empty(double):
                self.rejected.remove({trial})
                self._replay({trial})  # to the run that is kept
            self._client.delete_run(double.info.run_id)
        for double in parent_runs(self._client, self._experiment_id, self._spool.folder.name):
            if double.info.run_id != self._parent and is_empty(double):
                self._client.delete_run(double.info.run_id)


def _changes(entries: Iterable[Entry]) -> _Changes:
    """Returns what the lines of one trial write, in one piece."""
    change = _Changes()
    for entry in entries:
        change.time = entry["time"]
        match entry["op"]:
            case "start":
                change.params, change.status, change.starts = entry["params"], "RUNNING", True
            case "metrics":
                step = entry["epoch"]
                values = {**entry["values"], "epoch": step}
                change.metrics += [Metric(name, float(value), change.time, step) for name, value in values.items()]
            case "tags":
                change.tags |= entry["tags"]
            case "end":
                change.tags |= {TRIAL_END: entry["end"], CHECKPOINT: entry["checkpoint"]}
                change.status = entry["status"]
    return change


def _each(steps: Iterable[Callable[[], None]]) -> None:
    """Takes all steps, also those after a rejected one, and raises the last rejection."""
    rejection: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            if not is_rejection(error):
                raise
            rejection = error
    if rejection is not None:
        raise rejection


def log_all(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Logs any number of values to a run, in as few calls as MLflow allows."""
    params_ = [Param(key, str(value)) for key, value in (params or {}).items()]
    tags_ = [RunTag(key, value) for key, value in (tags or {}).items()]
    metrics = list(metrics)
    while metrics or params_ or tags_:
        client.log_batch(
            run_id, metrics=metrics[:_METRICS_PER_CALL], params=params_[:_PER_CALL], tags=tags_[:_PER_CALL]
        )
        metrics, params_, tags_ = metrics[_METRICS_PER_CALL:], params_[_PER_CALL:], tags_[_PER_CALL:]


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
    values = [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()]
    log_all(client, run_id, metrics=values, tags=tags)
    for path in artifacts:
        client.log_artifact(run_id, str(path), artifact_path=path.parent.name)
