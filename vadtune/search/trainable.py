"""The Ray Tune trainable: adapts a Population of one to Tune's step, checkpoint and reuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vadtune.checkpoint import load_state, save_held_out, save_model, save_state
from vadtune.data import HeldOut, Scaler, SearchData
from vadtune.evaluation import Evaluation, evaluate, follows_shortly
from vadtune.inference import FittedModel
from vadtune.member import State
from vadtune.model.products import use_threads
from vadtune.search.recovery import Recoverable
from vadtune.search.schedulers import EPOCH, next_report, report_epochs
from vadtune.search_file import SearchFile
from vadtune.training import Population

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


class TrainTrial(Recoverable):
    """Trains one configuration; each step goes to the next epoch at which a report is due."""

    def setup(
        self,
        config: dict[str, Any],
        *,
        search: SearchFile,
        data: SearchData,
        scaler: Scaler,
        feature_names: list[str],
    ) -> None:
        """Builds the population of one. See tune.Trainable.

        Args:
            config: The sampled parameters under dotted keys.
            search: The search file.
            data: All a search sees; from the object store, read-only.
            scaler: Of the data, for the model folder.
            feature_names: Likewise.
        """
        self._search, self._data, self._scaler, self._feature_names = search, data, scaler, feature_names
        use_threads(max(1, int(search.search.cpus_per_trial)))
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another configuration in this process, from nothing."""
        self._build(new_config)
        return True

    def _build(self, config: dict[str, Any]) -> None:
        trial_config = self._search.trial_config(config)
        device = "cuda" if self._search.search.gpus_per_trial and torch.cuda.is_available() else "cpu"
        self._population = Population([trial_config], self._data.train, device)
        self._due = report_epochs(self._search.search, trial_config.train.epochs)
        self._evaluation: Evaluation | None = None
        self._posteriors: Tensor | None = None  # of the validation rows, where the next report should start from them

    def step(self) -> dict[str, Any]:
        """Trains to the next report and scores.

        Raises:
            TrialDiverged: The loss became NaN or infinite; Tune fails this trial alone.
        """
        population = self._population
        # A worker may die between its last checkpoint and its end: then nothing is left to train, only to report.
        population.train_until(next_report(self._due, population.epoch))
        (self._evaluation,) = evaluate(population, self._data, start=[self._posteriors])
        shortly = follows_shortly(next_report(self._due, population.epoch), population.epoch)
        self._posteriors = self._evaluation.posteriors if shortly else None
        return {**self._evaluation.scores, EPOCH: population.epoch, "done": population.epoch >= self._due[-1]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the model folder, the training state and the held-out predictions."""
        (model,) = self._population.models()
        described, state = model.described(self._scaler, self._feature_names), self._population.states()[0]
        if self._posteriors is not None:
            state[POSTERIORS] = self._posteriors
        write_checkpoint(Path(checkpoint_dir), described, state, self._evaluation, self._data.validation)

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Goes on from a checkpoint."""
        assert checkpoint_dir is not None
        self._posteriors = load_state(Path(checkpoint_dir), self._population).get(POSTERIORS)
