"""Logs a search: appends to a spool on disk at once and sends it to MLflow from a background thread."""

from __future__ import annotations

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
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from vadtune import __version__
from vadtune.core.errors import TrackingError
from vadtune.tracking.delivery import Delivery
from vadtune.tracking.redact import short_reason, without_secrets
from vadtune.tracking.spool import Spool
from vadtune.tracking.store import RUN_NAME, SEARCH_RUN, connect_existing, optimise, sqlite_path

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0
_LONGEST_PAUSE = 15.0  # longest time between two attempts when the store does not answer
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
        for entry in self._spool.entries():
            if entry["op"] == "metrics":  # a resumed search does not log these again
                self._last_epoch[entry["trial"]] = max(entry["epoch"], self._last_epoch.get(entry["trial"], -1))
        self._progress = time.monotonic()
        self._wake, self._closing, self._drained = threading.Event(), threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, *, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Iterable[Path]) -> None:
        """Creates the parent run and starts sending entries to the store.

        Raises:
            TrackingError: The experiment was deleted.
        """
        self.experiment_id = self._find_or_create()
        versions = {f"vadtune.version.{name}": version(name) for name in _PACKAGES}
        versions |= {"vadtune.version.vadtune": __version__, "vadtune.version.python": platform.python_version()}
        names = {RUN_NAME: self.search, SEARCH_RUN: self.search, "mlflow.source.name": "vadtune"}
        all_tags = {**names, **versions, **_git_commit(), **tags}
        run = self._client.create_run(self.experiment_id, tags=all_tags, run_name=self.search)
        self.run_id = run.info.run_id
        self._client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        for path in artifacts:
            self._client.log_artifact(self.run_id, str(path))
        self._start_delivery(new=True)

    def reopen(self, run_id: str, experiment_id: str) -> None:
        """Continues the parent run and trial runs of an earlier process, without waiting for the store."""
        self.run_id, self.experiment_id = run_id, experiment_id
        self._append("reopen")
        self._start_delivery(new=False)

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
        """Ends a trial's run as FINISHED, KILLED or FAILED, with why it ended and the path of its last checkpoint."""
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

    def abandon(self) -> None:
        """Ends the parent run as failed and never raises: the error that ended the search must stay visible."""
        self._append("finish", status="FAILED", metrics={}, tags={}, artifacts={})
        self._close(_PATIENCE / 4)

    def _append(self, op: str, **values: Any) -> None:
        self._spool.append({"op": op, "time": int(time.time() * 1000), **values})

    def _start_delivery(self, *, new: bool) -> None:
        delivery = Delivery(self._client, self.experiment_id, self.run_id, self._spool, new=new)
        self._thread = threading.Thread(target=self._deliver, args=(delivery,), name="mlflow-delivery", daemon=True)
        self._thread.start()

    def _deliver(self, delivery: Delivery) -> None:
        """Sends new entries every second until the search has ended and all are sent; runs in the background thread."""
        pause, away = _EVERY_SECONDS, False
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._given_up.is_set():
                return
            try:
                while not self._given_up.is_set() and delivery.deliver():
                    self._progress = time.monotonic()
            except Exception as error:  # a failing store must not end a search
                pause = min(2 * pause, 1.0 if self._closing.is_set() else _LONGEST_PAUSE)
                if not away:
                    reason = short_reason(error, self.uri)
                    logger.warning("the tracking store does not answer, results are kept until it does: %s", reason)
                away = True
                continue
            if away:
                logger.warning("the tracking store answers again")
            pause, away = _EVERY_SECONDS, False
            if self._closing.is_set() and not self._spool.undelivered:
                self._drained.set()
                return

    def _close(self, patience: float, at_most: float | None = None) -> bool:
        self._progress = start = time.monotonic()
        self._closing.set()
        self._wake.set()
        while not self._drained.wait(0.05):
            now = time.monotonic()
            if now - self._progress > patience or (at_most is not None and now - start > at_most):
                # Stop before `sync` sends the rest: two senders would create a run twice.
                self._given_up.set()
                self._wake.set()
                if self._thread is not None:
                    self._thread.join(patience if at_most is None else at_most)
                return False
        self._spool.close()
        return True

    def _find_or_create(self) -> str:
        experiment = self._experiment
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            path = sqlite_path(self.uri)
            # Next to the database and absolute: MLflow's default depends on the working directory.
            location = (path.parent / "mlruns" / experiment).as_uri() if path else None
            try:
                return str(self._client.create_experiment(experiment, artifact_location=location))
            except MlflowException:  # another search has created it meanwhile
                found = self._client.get_experiment_by_name(experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment '{experiment}' must not be deleted in MLflow, but it is; restore it there, or choose "
                "another name by name=..."
            )
        return str(found.experiment_id)


def check_holds(client: MlflowClient, uri: str, search: str, run_id: str) -> None:
    """Checks that a store has the parent run of a search.

    Raises:
        TrackingError: It does not.
    """
    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(
            f"the store {without_secrets(uri)} does not hold the parent run {run_id} of {search}; pass the store that "
            "the search was started with by --tracking-uri"
        ) from error


def sync(folder: Path, uri: str, *, search: str, experiment_id: str, run_id: str) -> int:
    """Sends the entries in the folder of a search that the store has not received.

    Returns:
        How many bytes of the spool were sent; 0 if the store had everything.

    Raises:
        TrackingError: The store does not answer, stops answering, or does not have the search.
    """
    client = connect_existing(uri)
    check_holds(client, uri, search, run_id)
    spool = Spool(folder)
    waiting = spool.undelivered
    delivery = Delivery(client, experiment_id, run_id, spool)
    try:
        while delivery.deliver():
            pass
    except Exception as error:  # the type depends on the store
        raise TrackingError(
            f"the store {without_secrets(uri)} must accept all entries, but failed ({short_reason(error, uri)}); the "
            f"rest is kept, run `vadtune sync {search}` again"
        ) from error
    finally:
        spool.close()
    return waiting


def _git_commit() -> dict[str, str]:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}
