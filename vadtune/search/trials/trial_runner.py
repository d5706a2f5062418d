"""A trial that trains alone: a Population of one in the process of the trial; for many together see packing.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vadtune.artifacts.held_out_predictions import save_held_out
from vadtune.artifacts.model_folder import save_model
from vadtune.artifacts.training_state import load_state, save_state
from vadtune.config import SearchFile, TrialConfig
from vadtune.data import HeldOut, Scaler, SearchData
from vadtune.search.algorithms.schedulers import next_report, report_epochs
from vadtune.training.inference import FittedModel
from vadtune.training.member import State
from vadtune.training.population import Population
from vadtune.training.scoring import Evaluation, evaluate, follows_shortly

MODEL = "model"
"""The model folder inside a trial's checkpoint; the training state lies beside it."""
POSTERIORS = "validation"
"""In a training state: the posteriors of the validation rows, if the next report starts from them."""


def write_checkpoint(
    folder: Path, model: FittedModel, state: State, evaluation: Evaluation | None, held_out: HeldOut
) -> None:
    """Writes a trial's checkpoint: the model folder, the training state, and the held-out predictions.

    Args:
        folder: Where.
        model: With scaler and feature names.
        state: What training goes on from.
        evaluation: What the model is worth; None before the first report.
        held_out: The cells that were predicted.
    """
    save_model(folder / MODEL, model, metrics=evaluation.scores if evaluation else {})
    save_state(folder, state)
    if evaluation:
        save_held_out(folder, evaluation.held_out, held_out)


class TrialRunner:
    """One configuration in training, from report to report.

    Args:
        config: The configuration.
        search: The search file.
        data: All a search sees.
        scaler: Of the data, for the model folder.
        feature_names: Likewise.

    Attributes:
        population: Of this one.
        posteriors: Of the validation rows, where the next report should start from them.
    """

    def __init__(
        self, config: TrialConfig, search: SearchFile, data: SearchData, scaler: Scaler, feature_names: list[str]
    ) -> None:
        device = "cuda" if search.search.gpus_per_trial and torch.cuda.is_available() else "cpu"
        self._data, self._scaler, self._feature_names = data, scaler, feature_names
        self.population = Population([config], data.train, device)
        self._due = report_epochs(search.search, config.train.epochs)
        self._evaluation: Evaluation | None = None
        self.posteriors: Tensor | None = None

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.population.epoch

    @property
    def done(self) -> bool:
        """Whether the last report was reached."""
        return self.epoch >= self._due[-1]

    def advance(self) -> dict[str, float]:
        """Trains to the next report and returns its scores; see evaluation.evaluate.

        Raises:
            TrialDiverged: The loss or a score became NaN or infinite.
        """
        # A worker may die between its last checkpoint and its end: then nothing is left to train, only to report.
        self.population.train_until(next_report(self._due, self.epoch))
        (self._evaluation,) = evaluate(self.population, self._data, start=[self.posteriors])
        shortly = follows_shortly(next_report(self._due, self.epoch), self.epoch)
        self.posteriors = self._evaluation.posteriors if shortly else None
        return self._evaluation.scores

    def save(self, folder: Path) -> None:
        """Writes a checkpoint: the model folder, the training state and the held-out predictions."""
        (model,) = self.population.models()
        described, state = model.with_metadata(self._scaler, self._feature_names), self.population.states()[0]
        if self.posteriors is not None:
            state[POSTERIORS] = self.posteriors
        write_checkpoint(folder, described, state, self._evaluation, self._data.validation)

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint."""
        self.posteriors = load_state(folder, self.population).get(POSTERIORS)
