"""Starts a search: what may be wrong is told at once, and what takes long is done side by side.

To import what a search needs takes as long as to start Ray: this module imports little, and the rest while Ray starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vadtune.artifacts.run_folder import is_uri, local_folder
from vadtune.config import SearchFile
from vadtune.core.files import check_writable
from vadtune.data import load_dataset
from vadtune.search.cluster.join import check_shared, joined, nodes
from vadtune.search.driver.process import check_resources, imports, pending_ray
from vadtune.search.driver.shapes import check_shapes

if TYPE_CHECKING:
    from vadtune.search.driver.run import SearchOutcome


def start_search(
    search: SearchFile, *, storage: str | Path, tracking_uri: str | None, address: str | None = None
) -> SearchOutcome:
    """Runs a search to its end.

    Args:
        search: The search file.
        storage: Folder in which the search gets a folder of its own, or a URI for what Ray keeps. On a cluster all
            nodes share it.
        tracking_uri: The MLflow store; None for the one that ``tracking.tracking_uri`` returns.
        address: Of a running Ray cluster; None for a Ray of this machine alone.

    Raises:
        SearchError: There is no cluster at the address.
        TrackingError: The store does not answer; no trial was started, and Ray is gone again.
        VadtuneError: The folder cannot be written, or is not shared; nothing was started.
        ConfigError: A trial asks for more cores or GPUs than there are, or for columns the data does not have; nothing
            was started.
    """
    storage = str(storage)
    with joined(address) if address else contextlib.nullcontext():
        check_resources(search.search)
        check_writable(local_folder(storage))
        if is_uri(storage) or (address and len(nodes()) > 1):
            check_shared(storage)
        dataset = load_dataset(search.data)
        check_shapes(search, len(dataset.feature_names))
        with pending_ray(search.search) as ahead:
            return _run_search()(search, dataset, storage, tracking_uri, ahead)


@cache
def _run_search() -> Callable[..., SearchOutcome]:
    """Imports what a search needs, MLflow and Tune above all."""
    with imports():
        from vadtune.search.driver.run import run_search
    return run_search
