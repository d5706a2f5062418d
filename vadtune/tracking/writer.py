"""Writing a search to MLflow, on a thread of its own, many values to a commit."""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from vadtune import __version__
from vadtune.errors import TrackingError
from vadtune.tracking.store import (
    CHECKPOINT,
    PARENT,
    RUN_NAME,
    SEARCH_RUN,
    TRIAL_END,
    TRIAL_ID,
    child_runs,
    sqlite_path,
    without_secrets,
)

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.5
_PER_CALL = 900  # MLflow takes at most 1,000 metrics a call
_PACKAGES = ("ray", "optuna", "mlflow", "torch", "numpy")


@dataclass
class _Pending:
    """What has not been written yet of one trial."""

    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None


class Tracker:
    """Writes one search to MLflow.

    Args:
        client: Of a store that answers.
        uri: Of the store.
        experiment: The search's name.
        search: The unique name of this run of the search.
    """

    def __init__(self, client: MlflowClient, uri: str, experiment: str, search: str) -> None:
        self._client = client
        self.uri = uri
        self.search = search
        self.run_id = ""
        self._experiment, self._experiment_id = experiment, ""
        self._runs: dict[str, str] = {}  # trial id -> run id
        self._last_epoch: dict[str, int] = {}  # what a resumed search need not log again
        self._descriptions: dict[str, tuple[str, dict[str, Any]]] = {}
        self._described: set[str] = set()  # trials whose parameters are in the store
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._closing = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._write_regularly, name="mlflow-writer", daemon=True)

    def _find_or_create(self) -> str:
        experiment = self._experiment
        found = self._client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment '{experiment}' must not be deleted, and was; restore it in MLflow, or choose another "
                "name by name=..."
            )
        if found is not None:
            return str(found.experiment_id)
        location = None
        path = sqlite_path(self.uri)
        if path is not None:
            # Beside the database, and absolute: the default depends on the folder a command happens to run in.
            location = (path.parent / "mlruns" / experiment).as_uri()
        try:
            return str(self._client.create_experiment(experiment, artifact_location=location))
        except MlflowException:  # another search was faster
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def start(self, *, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Iterable[Path]) -> None:
        """Creates the parent run and starts writing.

        Raises:
            TrackingError: The experiment cannot be used.
        """
        self._experiment_id = self._find_or_create()
        versions = {f"vadtune.version.{name}": version(name) for name in _PACKAGES}
        all_tags = {
            RUN_NAME: self.search,
            SEARCH_RUN: self.search,
            "mlflow.source.name": "vadtune",
            "vadtune.version.vadtune": __version__,
            "vadtune.version.python": platform.python_version(),
            **versions,
            **_git_commit(),
            **tags,
        }
        run = self._client.create_run(self._experiment_id, tags=all_tags, run_name=self.search)
        self.run_id = run.info.run_id
        self._client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        for path in artifacts:
            self._client.log_artifact(self.run_id, str(path))
        self._thread.start()

    def reopen(self, run_id: str) -> bool:
        """Takes up a parent run, and its trials' runs, where an earlier process left them.

        Returns:
            Whether there is something to take up; False where the search has finished, and then nothing is changed.

        Raises:
            TrackingError: The store does not hold the run.
        """
        try:
            info = self._client.get_run(run_id).info
        except MlflowException as error:
            raise TrackingError(
                f"the store {without_secrets(self.uri)} does not hold the parent run {run_id} of {self.search}; name "
                "the store the search was started with by --tracking-uri"
            ) from error
        if info.status == "FINISHED":
            return False
        self._experiment_id = info.experiment_id
        self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id
        for run in child_runs(self._client, self._experiment_id, run_id):
            trial_id = run.data.tags.get(TRIAL_ID, "")
            self._runs[trial_id] = run.info.run_id
            self._last_epoch[trial_id] = int(run.data.metrics.get("epoch", -1))
        self._thread.start()
        return True

    def forget_trials_except(self, trial_ids: set[str]) -> None:
        """Deletes the runs of trials that a restored search does not know: their places are tried anew."""
        for trial_id in set(self._runs) - trial_ids:
            self._client.delete_run(self._runs.pop(trial_id))

    def start_trial(self, trial_id: str, name: str, params: Mapping[str, Any]) -> None:
        """Opens a trial's run: a new one, or the one it had before a resume."""
        with self._lock:
            self._descriptions[trial_id] = name, dict(params)
            pending = self._pending.setdefault(trial_id, _Pending())
            pending.status = "RUNNING"

    def log_metrics(self, trial_id: str, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Logs a report of a trial; one that was logged before a resume or a retry is not logged again."""
        if epoch <= self._last_epoch.get(trial_id, -1):
            return
        self._last_epoch[trial_id] = epoch
        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, epoch) for name, value in {**metrics, "epoch": epoch}.items()]
        with self._lock:
            self._pending.setdefault(trial_id, _Pending()).metrics += values

    def tag_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Tags a trial's run."""
        with self._lock:
            self._pending.setdefault(trial_id, _Pending()).tags |= tags

    def end_trial(self, trial_id: str, *, status: str, end: str, checkpoint: str = "") -> None:
        """Ends a trial's run.

        Args:
            trial_id: Of a trial that was started.
            status: FINISHED, KILLED or FAILED.
            end: Why it ended, in words.
            checkpoint: Where its last checkpoint is.
        """
        with self._lock:
            pending = self._pending.setdefault(trial_id, _Pending())
            pending.tags |= {TRIAL_END: end, CHECKPOINT: checkpoint}
            pending.status = status

    def finish(
        self, *, status: str, metrics: Mapping[str, float], tags: Mapping[str, str], artifacts: Mapping[str, str]
    ) -> None:
        """Writes all that is pending, then the summary of the search, and ends the parent run.

        Args:
            status: FINISHED, KILLED or FAILED.
            metrics: Of the search as a whole.
            tags: Likewise.
            artifacts: File name -> text.

        Raises:
            TrackingError: The store did not take it.
        """
        self._closing.set()
        self._thread.join()
        try:
            self._write()
            with tempfile.TemporaryDirectory() as folder:
                for name, text in artifacts.items():
                    (Path(folder) / name).write_text(text)
                    self._client.log_artifact(self.run_id, str(Path(folder) / name))
            log_to_run(self._client, self.run_id, metrics=metrics, tags=tags)
            self._client.set_terminated(self.run_id, status=status)
        except Exception as error:
            raise TrackingError(
                f"the store {without_secrets(self.uri)} did not take the last results ({error}); the search itself is "
                f"complete on disk, log it again with `vadtune resume {self.search}`"
            ) from error

    def abandon(self) -> None:
        """Ends the parent run as failed, for a search that broke; what is pending is written if the store takes it."""
        self._closing.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # the error that broke the search is the one to be seen
            self._write()
            self._client.set_terminated(self.run_id, status="FAILED")

    def _write_regularly(self) -> None:
        while not self._closing.wait(_FLUSH_SECONDS):
            try:
                self._write()
            except Exception as error:  # a store that fails must not end a search; what is pending stays pending
                if not self._warned:
                    logger.warning("the tracking store does not answer, results are kept until it does: %s", error)
                self._warned = True

    def _write(self) -> None:
        """Writes what is pending, one commit a trial; what could not be written becomes pending again."""
        with self._write_lock:
            with self._lock:
                batch, self._pending = self._pending, {}
            try:
                while batch:
                    trial_id = next(iter(batch))
                    self._write_trial(trial_id, batch[trial_id])
                    del batch[trial_id]
            finally:
                with self._lock:
                    for trial_id, older in batch.items():
                        newer = self._pending.get(trial_id, _Pending())
                        tags = {**older.tags, **newer.tags}
                        self._pending[trial_id] = _Pending(
                            older.metrics + newer.metrics, tags, newer.status or older.status
                        )

    def _write_trial(self, trial_id: str, pending: _Pending) -> None:
        name, values = self._descriptions[trial_id]
        if trial_id not in self._runs:
            tags = {PARENT: self.run_id, TRIAL_ID: trial_id, "mlflow.source.name": "vadtune"}
            self._runs[trial_id] = self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id
        elif pending.status == "RUNNING":
            self._client.update_run(self._runs[trial_id], status="RUNNING")
        # Apart from the creation of the run, which may have succeeded where this failed; equal ones may come twice.
        described = trial_id in self._described
        params = [] if described else [Param(key, str(value)) for key, value in values.items()]
        run_id = self._runs[trial_id]
        changes = [RunTag(key, value) for key, value in pending.tags.items()]
        for start in range(0, max(1, len(pending.metrics)), _PER_CALL):
            metrics = pending.metrics[start : start + _PER_CALL]
            if metrics or params or changes:
                self._client.log_batch(run_id, metrics=metrics, params=params, tags=changes)
            params, changes = [], []
        self._described.add(trial_id)
        if pending.status not in (None, "RUNNING"):
            self._client.set_terminated(run_id, status=pending.status)


def log_to_run(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Iterable[Path] = (),
) -> None:
    """Adds metrics, tags and files to a run that exists."""
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()],
        tags=[RunTag(key, value) for key, value in (tags or {}).items()],
    )
    for path in artifacts:
        client.log_artifact(run_id, str(path), artifact_path=path.parent.name)


def _git_commit() -> dict[str, str]:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}
