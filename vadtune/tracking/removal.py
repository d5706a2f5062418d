"""Deletes the MLflow runs of a search."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mlflow import MlflowClient

from vadtune.artifacts.run_folder import Run
from vadtune.tracking.store import child_runs
from vadtune.tracking.store_errors import patiently, readable_errors
from vadtune.tracking.sync import connect_of


class SearchRuns:
    """The runs of a search in its store that are not deleted.

    Args:
        folder: The search's folder.
        run: The content of its run.json.
        uri: The store.

    Raises:
        TrackingError: The store does not exist or does not answer.
    """

    def __init__(self, folder: Path, run: Run, uri: str) -> None:
        self._client: MlflowClient = connect_of(folder, uri)
        self._uri = uri
        with readable_errors(uri):
            trials = child_runs(self._client, run.experiment_id, run.parent_run_id)
            self.ids = [trial.info.run_id for trial in trials]
            parents = self._client.search_runs([run.experiment_id], f"attributes.run_id = '{run.parent_run_id}'")
            self.ids += [parent.info.run_id for parent in parents]  # last, so that a deletion can be repeated

    def delete(self) -> None:
        """Deletes them.

        Raises:
            TrackingError: The store stops answering, or refuses.
        """
        with readable_errors(self._uri):
            for run_id in self.ids:
                patiently(partial(self._client.delete_run, run_id))
