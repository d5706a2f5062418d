"""Logs a search: appends to a spool on disk at once and sends it to MLflow from a background thread."""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from vadtune import __version__
from vadtune.tracking.commands import next_command
from vadtune.tracking.delivery import Delivery
from vadtune.tracking.redact import short_reason
from vadtune.tracking.runs import find_or_create_experiment, find_or_create_parent, parent_runs
from vadtune.tracking.spool import Spool
from vadtune.tracking.store import optimise, within
from vadtune.tracking.store_errors import SearchGoneError, patiently, readable_errors

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0
_LONGEST_PAUSE = 15.0  # longest time between two attempts when the store does not answer
_DISCARD_SECONDS = 8.0
_PATIENCE = 20.0  # how long the end of a search waits without progress
_PACKAGES = ("ray", "optuna", "mlflow", "torch", "numpy")


class Tracker:
    """Logs one search to MLflow: a parent run, and a child run per trial.

    Args:
        client: Client of the store.
        uri: URI of the store.
        experiment: The experiment, which is the search's name.
        search: The unique name of this run of the search.
        folder: The search's folder; entries are kept in it until the store has them.
    """

    def __init__(self, client: MlflowClient, uri: str, experiment: str, search: str, folder: Path) -> None:
        self._client = client
        self.uri = uri
        self.search = search
        self.folder = folder
        self.run_id = self.experiment_id = ""
        self._experiment = experiment
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = Spool(folder)
        self._last_epoch: dict[str, int] = {}
        self.ends: dict[str, str] = {}
        """Trial -> why it ended, of trials that ended in an earlier process."""
        for entry in self._spool.entries():
            if entry["op"] == "end":
                self.ends[entry["trial"]] = entry["end"]
            elif entry["op"] == "start":
                self.ends.pop(entry["trial"], None)
            if entry["op"] == "metrics":  # a resumed search does not log these again
                self._last_epoch[entry["trial"]] = max(entry["epoch"], self._last_epoch.get(entry["trial"], -1))
        self._progress = time.monotonic()
        self._wake, self._closing, self._drained = threading.Event(), threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, *, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Iterable[Path]) -> None:
        """Creates the parent run and starts sending entries to the store.

        Args:
            params: Of the search.
            tags: Of the search.
            artifacts: Files in the search's folder.

        Raises:
            TrackingError: The experiment was deleted, or the store failed again and again; no run is left in it.
        """
        versions = {f"vadtune.version.{name}": version(name) for name in _PACKAGES}
        versions |= {"vadtune.version.vadtune": __version__, "vadtune.version.python": platform.python_version()}
        self._append(
            "search",
            params={key: str(value) for key, value in params.items()},
            tags={**versions, **_git_commit(), **tags},
            artifacts=[path.name for path in artifacts],
        )
        try:
            with readable_errors(self.uri):
                delivery = patiently(self._create)
        except BaseException:
            self.discard()
            raise
        self._start_delivery(delivery)

    def _create(self) -> Delivery:
        self.experiment_id = find_or_create_experiment(self._client, self.uri, self._experiment)
        self.run_id = find_or_create_parent(self._client, self.experiment_id, self.search)
        delivery = Delivery(self._client, self.experiment_id, self.run_id, self._spool, new=True)
        delivery.deliver()
        return delivery

    def discard(self) -> None:
        """Deletes the parent run of a search that could not start, if the store lets it; never raises."""
        self._given_up.set()
        self._wake.set()

        def delete() -> None:
            if self._thread is not None:
                self._thread.join()
            for run in parent_runs(self._client, self.experiment_id, self.search):
                self._client.delete_run(run.info.run_id)

        if self.experiment_id:
            with contextlib.suppress(Exception):
                within(_DISCARD_SECONDS, lambda: patiently(delete))

    def reopen(self, run_id: str, experiment_id: str) -> None:
        """Continues the parent run and trial runs of an earlier process, without waiting for the store."""
        self.run_id, self.experiment_id = run_id, experiment_id
        self._append("reopen")
        self._start_delivery(Delivery(self._client, experiment_id, run_id, self._spool))

    def forget_trials_except(self, trial_ids: set[str]) -> None:
        """Deletes the runs of trials that a restored search does not know; it will sample new trials in their place."""
        self._append("forget", keep=sorted(trial_ids))

    def start_trial(self, trial_id: str, name: str, params: Mapping[str, Any]) -> None:
        """Starts a trial's run, or reopens it after a resume or a retry."""
        self._append("start", trial=trial_id, name=name, params={key: str(value) for key, value in params.items()})

    def log_metrics(self, trial_id: str, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Logs the metrics of an epoch, unless they were logged already before a resume or a retry."""
        if epoch <= self._last_epoch.get(trial_id, -1):
            return
        self._last_epoch[trial_id] = epoch
        values = {name: float(value) for name, value in metrics.items()}
        self._append("metrics", trial=trial_id, epoch=epoch, values=values)

    def tag_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a trial's run."""
        self._append("tags", trial=trial_id, tags=dict(tags))

    def end_trial(self, trial_id: str, *, status: str, end: str, checkpoint: str = "") -> None:
        """Ends a trial's run as FINISHED, KILLED or FAILED, with why it ended and where its last checkpoint is.

        A checkpoint in the run folder is named relative to it.
        """
        self._append("end", trial=trial_id, status=status, end=end, checkpoint=checkpoint)

    def finish(
        self,
        *,
        status: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        at_most: float | None = None,
    ) -> bool:
        """Adds metrics, tags and files (name -> text) to the parent run, ends it, and waits while the store progresses.

        Args:
            status: FINISHED, or KILLED if it can be resumed.
            metrics: Of the search.
            tags: Of the search.
            artifacts: Of the search.
            at_most: Longest wait in seconds; None for as long as the store progresses.

        Returns:
            Whether the store has everything; if not, ``vadtune sync`` sends the rest later.
        """
        self._append("finish", status=status, metrics=dict(metrics), tags=dict(tags), artifacts=dict(artifacts))
        has_all = self._close(_PATIENCE, at_most)
        if has_all:
            optimise(self.uri)
        return has_all

    @property
    def is_unwritten(self) -> bool:
        """Whether a full disk kept the last entries from the spool, so that only memory has them."""
        return self._spool.is_unwritten

    def abandon(self) -> None:
        """Ends the parent run as failed and never raises: the error that ended the search must stay visible."""
        self._append("finish", status="FAILED", metrics={}, tags={}, artifacts={})
        self._close(_PATIENCE / 4)

    def _append(self, op: str, **values: Any) -> None:
        self._spool.append({"op": op, "time": int(time.time() * 1000), **values})

    def _start_delivery(self, delivery: Delivery) -> None:
        self._thread = threading.Thread(target=self._deliver, args=(delivery,), name="mlflow-delivery", daemon=True)
        self._thread.start()

    def _deliver(self, delivery: Delivery) -> None:
        """Sends new entries every second until the search has ended and all are sent; runs in the background thread."""
        pause, problem, told, sent = _EVERY_SECONDS, False, 0, 0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._given_up.is_set():
                return
            try:
                while not self._given_up.is_set() and delivery.deliver():
                    self._progress = time.monotonic()
                is_done = self._closing.is_set() and not self._spool.undelivered
                if is_done:
                    delivery.settle()
            except Exception as error:  # a failing store must not end a search
                pause = min(2 * pause, 1.0 if self._closing.is_set() else _LONGEST_PAUSE)
                if delivery.sent > sent:
                    self._progress, pause, sent = time.monotonic(), _EVERY_SECONDS, delivery.sent
                is_gone = isinstance(error, SearchGoneError)
                if not problem:
                    away = "the tracking store does not answer, results are kept until it does: "
                    logger.warning("%s", error if is_gone else away + short_reason(error, self.uri))
                problem = True
                if is_gone and self._closing.is_set():  # waiting does not help
                    self._given_up.set()
                    return
                continue
            if problem:
                logger.warning("the tracking store answers again")
            pause, problem = _EVERY_SECONDS, False
            rejected = len(delivery.rejected)
            if rejected > told and (is_done or not told):  # the first ones, and all of them at the end
                told = rejected
                retry = next_command(f"sync {self.search} --retry-rejected", folder=self.folder, uri=self.uri)
                logger.warning("%s; try them again: %s", delivery.rejected.summary(), retry)
            if is_done:
                self._drained.set()
                return

    def _close(self, patience: float, at_most: float | None = None) -> bool:
        self._progress = start = time.monotonic()
        self._closing.set()
        self._wake.set()
        while not self._drained.wait(0.05):
            now = time.monotonic()
            is_late = now - self._progress > patience or (at_most is not None and now - start > at_most)
            if is_late or self._given_up.is_set():
                # Stop before `sync` sends the rest: two senders would create a run twice.
                self._given_up.set()
                self._wake.set()
                if self._thread is not None:
                    self._thread.join(patience if at_most is None else at_most)
                return False
        self._spool.close()
        return True


def _git_commit() -> dict[str, str]:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}
