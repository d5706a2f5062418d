"""Starts a search: checks everything that can be wrong first, then imports Tune and MLflow while Ray starts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from vadtune.artifacts.run_folder import is_uri, local_folder
from vadtune.config import SearchFile
from vadtune.core.files import check_writable
from vadtune.core.processes import large_imports
from vadtune.data import load_dataset
from vadtune.search.cluster.join import check_shared, joined, nodes
from vadtune.search.driver.model_checks import check_heads, check_trial_memory
from vadtune.search.driver.ray_start import pending_ray
from vadtune.search.driver.resources import check_resources
from vadtune.search.trials.trial_data import TrialData

if TYPE_CHECKING:
    from vadtune.search.driver.run import SearchOutcome


def start_search(
    search: SearchFile, *, storage: str | Path, tracking_uri: str | None, address: str | None = None
) -> SearchOutcome:
    """Runs a search from its first trial to its last.

    Args:
        search: The search file.
        storage: Folder in which a folder for the search is made, or a URI for the files of Ray. The nodes of a cluster
            share it.
        tracking_uri: The MLflow store; None for the one that ``tracking.tracking_uri`` returns.
        address: Address of a running Ray cluster; None to start a Ray on this machine.

    Raises:
        SearchError: No cluster runs at the address, or this version of Ray cannot be used safely.
        TrackingError: The store does not answer.
        VadtuneError: The folder cannot be written, or the nodes do not share it.
        DataError: The data cannot be used, or the trials need more memory than is free.
        ConfigError: A trial asks for more cores or GPUs than any node has, or for columns that the data does not have.
    """
    storage = str(storage)
    with joined(address) if address else contextlib.nullcontext():
        check_resources(search.search)
        check_writable(local_folder(storage))
        if is_uri(storage) or (address and len(nodes()) > 1):
            check_shared(storage)
        data = TrialData(load_dataset(search.data))
        check_heads(search, len(data.feature_names))
        with pending_ray(data.size) as pending:
            if pending.cores is not None:
                check_trial_memory(search, data.train_rows, len(data.feature_names), pending.cores)
            with large_imports():
                from vadtune.search.driver.run import run_search  # imports Tune and MLflow: seconds, as Ray's start

            return run_search(search, data, storage, tracking_uri, pending, address)
