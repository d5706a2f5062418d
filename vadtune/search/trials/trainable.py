"""The Ray Tune trainable of unpacked trials. The driver imports this module, so it imports PyTorch only in methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadtune.config import SearchFile
from vadtune.data import Scaler, SearchData
from vadtune.search.algorithms.schedulers import EPOCH
from vadtune.search.resume.recovery import Recoverable

if TYPE_CHECKING:
    from vadtune.search.trials.trial_runner import TrialRunner


class TrainTrial(Recoverable):
    """Trains one configuration; each step ends at the next epoch at which a report is due."""

    _runner: TrialRunner

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
            data: The training and validation data, read-only in the object store.
            scaler: Scaler of the data, for the model folder.
            feature_names: Names of the columns, for the model folder.
        """
        from vadtune.core.threads import use_threads

        self._search, self._data, self._scaler, self._feature_names = search, data, scaler, feature_names
        use_threads(max(1, int(search.search.cpus_per_trial)))
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another configuration in this process."""
        self._build(new_config)
        return True

    def _build(self, config: dict[str, Any]) -> None:
        from vadtune.search.trials.trial_runner import TrialRunner

        trial_config = self._search.trial_config(config)
        self._runner = TrialRunner(trial_config, self._search, self._data, self._scaler, self._feature_names)

    def step(self) -> dict[str, Any]:
        """Trains to the next report and returns its scores.

        Raises:
            TrialDiverged: The loss became NaN or infinite; Tune fails this trial alone.
        """
        scores = self._runner.advance()
        return {**scores, EPOCH: self._runner.epoch, "done": self._runner.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint."""
        self._runner.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Continues from a checkpoint."""
        assert checkpoint_dir is not None
        self._runner.load(Path(checkpoint_dir))
