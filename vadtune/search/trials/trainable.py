"""The Ray Tune trainable of unpacked trials. The driver imports this module, so it imports PyTorch only in methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadtune.config import SearchFile
from vadtune.data import HeldOut, Scaler, SearchData
from vadtune.search.algorithms.schedulers import EPOCH, next_report, report_epochs
from vadtune.search.resume.retries import Recoverable

if TYPE_CHECKING:
    from torch import Tensor

    from vadtune.training.inference import FittedModel
    from vadtune.training.member import State
    from vadtune.training.population import Population
    from vadtune.training.scoring import Evaluation

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
    from vadtune.artifacts.held_out_predictions import save_held_out
    from vadtune.artifacts.model_folder import save_model
    from vadtune.artifacts.training_state import save_state

    save_model(folder / MODEL, model, metrics=evaluation.scores if evaluation else {})
    save_state(folder, state)
    if evaluation:
        save_held_out(folder, evaluation.held_out, held_out)


class TrainTrial(Recoverable):
    """Trains one configuration, as a population of one; each step ends at the next epoch at which a report is due."""

    _population: Population
    _evaluation: Evaluation | None  # None before the first report
    _posteriors: Tensor | None  # of the validation rows, if the next report starts from them

    def setup(
        self, config: dict[str, Any], *, search: SearchFile, data: SearchData, scaler: Scaler, feature_names: list[str]
    ) -> None:
        """Builds the population of one. See tune.Trainable.

        Args:
            config: The sampled parameters under dotted keys.
            search: The search file.
            data: The training and validation data, read-only in the object store.
            scaler: Scaler of the data, for the model folder.
            feature_names: Names of the columns, for the model folder.
        """
        from vadtune.core.threads import use_threads

        self._search, self._data, self._scaler, self._feature_names = search, data, scaler, feature_names
        use_threads(max(1, int(search.search.cpus_per_trial)))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another configuration in this process."""
        import torch

        from vadtune.training.population import Population

        trial, settings = self._search.trial_config(new_config), self._search.search
        device = "cuda" if settings.gpus_per_trial and torch.cuda.is_available() else "cpu"
        self._evaluation = self._posteriors = None
        self.__dict__.pop("_population", None)  # its memory is free before the next one needs it
        self._population = Population([trial], self._data.train, device)
        self._due = report_epochs(settings, trial.train.epochs)
        return True

    def step(self) -> dict[str, Any]:
        """Trains to the next report and returns its scores; see ``scoring.evaluate``.

        Raises:
            TrialDiverged: The loss or a score became NaN or infinite; Tune fails this trial alone.
        """
        from vadtune.training.scoring import evaluate, follows_shortly

        # After a worker died between its last checkpoint and its end, nothing is left to train.
        self._population.train_until(next_report(self._due, self._population.epoch))
        (self._evaluation,) = evaluate(self._population, self._data, start=[self._posteriors])
        epoch = self._population.epoch
        shortly = follows_shortly(next_report(self._due, epoch), epoch)
        self._posteriors = self._evaluation.posteriors if shortly else None
        return {**self._evaluation.scores, EPOCH: epoch, "done": epoch >= self._due[-1]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint."""
        (model,), (state,) = self._population.models(), self._population.states()
        if self._posteriors is not None:
            state[POSTERIORS] = self._posteriors
        model = model.with_metadata(self._scaler, self._feature_names)
        write_checkpoint(Path(checkpoint_dir), model, state, self._evaluation, self._data.validation)

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Continues from a checkpoint."""
        from vadtune.artifacts.training_state import load_state

        assert checkpoint_dir is not None
        self._posteriors = load_state(Path(checkpoint_dir), self._population).get(POSTERIORS)
