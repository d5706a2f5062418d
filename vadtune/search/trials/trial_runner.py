"""Trains an unpacked trial as a Population of one; see packing.py for many trials together."""

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
"""Name of the model folder in a trial's checkpoint."""
POSTERIORS = "validation"
"""Key in a training state: posteriors of the validation rows, if the next report starts from them."""


def write_checkpoint(
    folder: Path, model: FittedModel, state: State, evaluation: Evaluation | None, held_out: HeldOut
) -> None:
    """Writes a trial's checkpoint: the model folder, the training state, and the held-out predictions.

    Args:
        folder: Folder of the checkpoint.
        model: The model, with scaler and feature names.
        state: The training state.
        evaluation: Scores and predictions; None before the first report.
        held_out: The held-out cells.
    """
    save_model(folder / MODEL, model, metrics=evaluation.scores if evaluation else {})
    save_state(folder, state)
    if evaluation:
        save_held_out(folder, evaluation.held_out, held_out)


class TrialRunner:
    """Trains one configuration from report to report.

    Args:
        config: The configuration.
        search: The search file.
        data: The training and validation data.
        scaler: Scaler of the data, for the model folder.
        feature_names: Names of the columns, for the model folder.

    Attributes:
        population: The population of one.
        posteriors: Posteriors of the validation rows, if the next report starts from them.
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
        # After a worker died between its last checkpoint and its end, nothing is left to train.
        self.population.train_until(next_report(self._due, self.epoch))
        (self._evaluation,) = evaluate(self.population, self._data, start=[self.posteriors])
        shortly = follows_shortly(next_report(self._due, self.epoch), self.epoch)
        self.posteriors = self._evaluation.posteriors if shortly else None
        return self._evaluation.scores

    def save(self, folder: Path) -> None:
        """Writes a checkpoint: the model folder, the training state and the held-out predictions."""
        (model,) = self.population.models()
        full_model, state = model.with_metadata(self._scaler, self._feature_names), self.population.states()[0]
        if self.posteriors is not None:
            state[POSTERIORS] = self.posteriors
        write_checkpoint(folder, full_model, state, self._evaluation, self._data.validation)

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint."""
        self.posteriors = load_state(folder, self.population).get(POSTERIORS)
