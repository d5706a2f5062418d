"""What the trials of a search need of its dataset, and where it is: with the driver, then in Ray's object store."""

from __future__ import annotations

from typing import Any

import ray

from vadtune.core.memory import return_freed_memory
from vadtune.data import IncompleteDataset, Scaler, SearchData


class TrialData:
    """The data of a search on its way to the trials.

    The driver of a large search has no memory for a copy of its own: it keeps neither the dataset nor the arrays that
    ``place`` puts into the object store, which all trials of a node share.

    Args:
        dataset: The dataset of the search.

    Attributes:
        scaler: Scaler of the data.
        feature_names: One name per column.
        train_rows: Number of train rows.
        inferred_rows: Number of validation rows that a score infers, over all folds.
        size: Of the arrays that ``place`` puts into the object store, in bytes.
        mask_hashes: See ``IncompleteDataset.mask_hashes``.
        scored: The validation rows and cells that are scored, in words.
    """

    def __init__(self, dataset: IncompleteDataset) -> None:
        self.scaler: Scaler = dataset.scaler
        self.feature_names: list[str] = dataset.feature_names
        self.train_rows = len(dataset.train.x)
        self.mask_hashes = dataset.mask_hashes
        self._data: SearchData | None = dataset.search_data
        visible, truth, held_out = self._data.validation
        self.inferred_rows = len(visible.x)
        self.size = sum(array.nbytes for array in (*self._data.train, *visible, truth, held_out))
        cells = int(self._data.validation.cells.sum())
        self.scored = f"{cells} observed cells of {len(dataset.scored_rows)} of {len(dataset.validation.x)} rows"

    def place(self) -> Any:
        """Puts the train and validation rows into the object store and returns the reference; only once."""
        reference = ray.put(self._data)
        self._data = None
        return_freed_memory()
        return reference
