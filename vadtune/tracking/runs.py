"""Creates the runs of a search so that each exists once: looked up by a tag, created without retries, doubles deleted.

Where the answer to a creation is lost, nobody knows whether the run exists. So the next attempt looks it up, and a
double that appears later (the store was slow) is deleted once its values are known to be in the other run.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from vadtune.core.errors import TrackingError
from vadtune.tracking.commands import into, next_command
from vadtune.tracking.redact import short_reason, without_secrets
from vadtune.tracking.store import PARENT, RUN_NAME, SEARCH_RUN, TRIAL_ID, child_runs, find_runs, sqlite_path
from vadtune.tracking.store_errors import SearchGoneError, with_store, without_http_retries

_GONE = ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")
_SOURCE = {"mlflow.source.name": "vadtune"}


def find_or_create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Returns the id of an experiment.

    Raises:
        TrackingError: It was deleted, so that its name is taken.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(uri)
        # Next to the database and absolute: MLflow's default depends on the working directory.
        location = (path.parent / "mlruns" / name).as_uri() if path else None
        try:
            with without_http_retries():
                return _id(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another search has created it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        restore = with_store(uri, f"mlflow experiments restore --experiment-id {found.experiment_id}")
        raise TrackingError(
            f"the experiment '{name}' must not be deleted in MLflow, but it is; restore it ({restore}), or choose "
            "another name by name=..."
        )
    return _id(found.experiment_id)


def find_or_create_parent(client: MlflowClient, experiment_id: str, search: str) -> str:
    """Returns the id of the run that stands for a search: the one with its tag, else a new one."""
    found = parent_runs(client, experiment_id, search)
    if found:
        return str(found[0].info.run_id)
    tags = {SEARCH_RUN: search, RUN_NAME: search, **_SOURCE}
    with without_http_retries():
        return _id(client.create_run(experiment_id, tags=tags, run_name=search).info.run_id)


def parent_runs(client: MlflowClient, experiment_id: str, search: str) -> list[Run]:
    """Returns the runs that stand for a search, the oldest first: one, or more where an answer was lost."""
    return sorted(find_runs(client, [experiment_id], f"tags.`{SEARCH_RUN}` = '{search}'"), key=_age)


def check_parent(client: MlflowClient, uri: str, folder: Path, run_id: str) -> None:
    """Checks that a store holds the parent run of a search.

    Raises:
        SearchGoneError: It does not, or the run or its experiment was deleted; the message says what can be done.
        Exception: The store is away.
    """
    shown, search = without_secrets(uri), folder.name
    command = next_command(f"sync {search} {into(uri)}", folder=folder)
    instead = f"or deliver the search into a new run ({command})"
    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage != "deleted":
            return
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise
        raise SearchGoneError(
            f"the store {shown} does not hold the parent run {run_id} of {search} ({short_reason(error, uri)}); pass "
            f"the store that the search was started with by --tracking-uri, {instead}"
        ) from error
    what, restore = f"the parent run {run_id} of {search}", f"mlflow runs restore --run-id {run_id}"
    if experiment.lifecycle_stage == "deleted":
        what = f"the experiment '{experiment.name}' of {search}"
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    raise SearchGoneError(
        f"{what} must not be deleted in MLflow, but it is; nothing is lost: restore it ({with_store(uri, restore)}), "
        f"{instead}"
    )


class TrialRuns:
    """The runs of a search's trials.

    Args:
        client: Client of the store.
        experiment_id: The search's experiment.
        parent_run_id: The search's parent run.
        new: Whether the store has no runs of trials yet, so that none are looked up.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, parent_run_id: str, *, new: bool) -> None:
        self._client, self._experiment_id, self._parent = client, experiment_id, parent_run_id
        self._runs: dict[str, Run] | None = {} if new else None  # None: look them up

    def forget(self) -> None:
        """Forgets what is known, after a failure: a run may have been created although the answer was lost."""
        self._runs = None

    def find(self, trial: str) -> Run | None:
        """Returns a trial's run as it was when it was looked up or created; None if there is none."""
        return self._known().get(trial)

    def trials(self) -> set[str]:
        """Returns the trials that have a run."""
        return set(self._known())

    def create(self, trial: str, name: str, time: int) -> Run:
        """Creates the run of a trial that has none."""
        tags = {PARENT: self._parent, TRIAL_ID: trial, **_SOURCE}
        with without_http_retries():
            run = self._client.create_run(self._experiment_id, start_time=time, tags=tags, run_name=name)
        _id(run.info.run_id)
        self._known()[trial] = run
        return run

    def delete(self, trial: str) -> None:
        """Deletes the run of a trial."""
        self._client.delete_run(self._known()[trial].info.run_id)
        del self._known()[trial]

    def look_up(self) -> list[tuple[str, Run]]:
        """Reads the runs from the store; of a trial with several, the first one that is not deleted counts.

        Returns:
            The doubles: trial and run.
        """
        by_trial: defaultdict[str, list[Run]] = defaultdict(list)
        for run in child_runs(self._client, self._experiment_id, self._parent, deleted=True):
            if TRIAL_ID in run.data.tags:
                by_trial[run.data.tags[TRIAL_ID]].append(run)
        for runs in by_trial.values():
            runs.sort(key=_age)
        self._runs = {trial: runs[0] for trial, runs in by_trial.items()}
        return [
            (trial, run)
            for trial, runs in by_trial.items()
            for run in runs[1:]
            if run.info.lifecycle_stage != "deleted"
        ]

    def _known(self) -> dict[str, Run]:
        if self._runs is None:
            self.look_up()
        assert self._runs is not None
        return self._runs


def is_settled(client: MlflowClient, experiment_id: str, parent_run_id: str) -> bool:
    """Returns whether all runs of a search have ended and each exists once."""
    if client.get_run(parent_run_id).info.status == "RUNNING":
        return False
    if child_runs(client, experiment_id, parent_run_id, condition="status = 'RUNNING'"):
        return False
    return not TrialRuns(client, experiment_id, parent_run_id, new=False).look_up()


def is_empty(run: Run) -> bool:
    """Returns whether nothing was logged to a run."""
    data = run.data
    return not data.metrics and not data.params


def _age(run: Run) -> tuple[bool, int, str]:
    return run.info.lifecycle_stage == "deleted", run.info.start_time, run.info.run_id


def _id(value: object) -> str:
    """Returns an id that the store answered.

    Raises:
        ConnectionError: The answer was empty: MLflow takes one that was cut off for a run without an id.
    """
    if not value:
        raise ConnectionError("the answer is empty")
    return str(value)
