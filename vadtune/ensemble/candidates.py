"""Candidates for an ensemble: the best trials of a search whose model and held-out predictions can be read here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.artifacts.held_out_predictions import HELD_OUT_FILE, load_held_out
from vadtune.artifacts.model_folder import find_model_folders, load_model, read_manifest
from vadtune.config import TrialConfig, load_trial
from vadtune.core.errors import ModelFolderError, VadtuneError
from vadtune.core.files import fetch_folder
from vadtune.data import IncompleteDataset
from vadtune.ensemble.shared_dataset import shared_dataset
from vadtune.tracking.queries import Trial, ranked
from vadtune.training.inference import MOST_LATENTS
from vadtune.training.refit import Fit, same_steps

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A trial that can be a member of an ensemble.

    Attributes:
        trial: Its record in the MLflow store.
        folder: Its model folder.
        config: Its configuration.
        held_out: Its predictions of the held-out validation cells, float32 (c,), in the scaler's units.
    """

    trial: Trial
    folder: Path
    config: TrialConfig
    held_out: np.ndarray

    def fit(self, dataset: IncompleteDataset, rows: int, *, effort: float = 1.0) -> Fit:
        """Returns the training of its configuration on ``rows`` rows, with the number of steps it had in the search.

        Args:
            dataset: The data of the search.
            rows: Number of rows to train on.
            effort: Share of the steps to take.
        """
        before = len(dataset.train.x)
        return same_steps(self.config, self.trial.epoch, rows_before=before, rows=rows, effort=effort)

    def with_seed(self, offset: int) -> Candidate:
        """Returns the candidate with ``offset`` added to its training seed."""
        train = self.config.train
        seeded = train.model_copy(update={"seed": (train.seed + offset) % 2**32})
        return self._replace(config=self.config.model_copy(update={"train": seeded}))


def find_candidates(
    name: str, trials: Sequence[Trial], metric: str, most: int, fetched: Path
) -> tuple[list[Candidate], IncompleteDataset]:
    """Returns at most ``most`` candidates for an ensemble, best first, and the dataset they share.

    Args:
        name: Name of the search.
        trials: Its trials.
        metric: The metric that ranks them; lower is better.
        most: Number of candidates at most.
        fetched: A folder for copies of checkpoints that are stored under a URI.

    Raises:
        ModelFolderError: No trial has a readable checkpoint, or a model folder is damaged.
        DataError: The data cannot be loaded here.
    """
    dataset: IncompleteDataset | None = None
    found: list[Candidate] = []
    pruned = 0
    for trial in ranked(trials, metric):
        if _is_pruned(trial):
            pruned += 1
            continue
        folder = _model_folder(trial, fetched)
        if folder is None:
            continue
        read_manifest(folder)
        if dataset is None:
            model = load_model(folder)
            dataset = shared_dataset([(trial.name, model)])
            _check_train_rows(name, len(model.latents), dataset)
        try:
            held_out = load_held_out(folder.parent, dataset.search_data.validation)
        except ModelFolderError as error:
            logger.warning("%s is skipped: %s", trial.name, str(error).partition(";")[0])
            continue
        found.append(Candidate(trial, folder, load_trial(folder / "config.yaml"), held_out))
        if len(found) == most:
            break
    if pruned:
        logger.warning("%d trials are left out, their models were deleted by `vadtune prune`", pruned)
    if dataset is None or not found:
        raise ModelFolderError(
            f"{name}: none of its {len(trials)} trials has both a score and a checkpoint that can be read here; "
            "export where the search ran, or search again"
        )
    return found, dataset


def _check_train_rows(name: str, trained: int, dataset: IncompleteDataset) -> None:
    """Raises a ModelFolderError if a search trained on another number of rows than its data section gives now.

    Args:
        name: Name of the search.
        trained: Number of rows whose latents a model has: all train rows, or a sample of MOST_LATENTS.
        dataset: The dataset of the search.
    """
    if trained not in (rows := len(dataset.train.x), min(rows, MOST_LATENTS)):
        raise ModelFolderError(
            f"{name}: its models must be of the {len(dataset.train.x)} train rows that its data section gives, got "
            f"models of {trained} rows, of an earlier version without data.sample; search again"
        )


def _is_pruned(trial: Trial) -> bool:
    """Returns whether only the held-out predictions of a trial are left."""
    folder = Path(trial.checkpoint)
    return bool(trial.checkpoint) and (folder / HELD_OUT_FILE).exists() and len(list(folder.iterdir())) == 1


def _model_folder(trial: Trial, fetched: Path) -> Path | None:
    """Returns the model folder in a trial's last checkpoint, copied below ``fetched`` if it is stored under a URI."""
    if not trial.checkpoint:
        return None
    try:
        checkpoint = Path(trial.checkpoint)
        if "://" in trial.checkpoint:
            checkpoint = fetched / trial.trial_id
            fetch_folder(trial.checkpoint, checkpoint)
        return find_model_folders(checkpoint)[0]
    except VadtuneError as error:
        logger.warning("%s is skipped, its checkpoint is not here: %s", trial.name, str(error).partition(";")[0])
        return None
