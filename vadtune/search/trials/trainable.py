"""The Ray Tune trainable: adapts a configuration in training to Tune's step, checkpoint and reuse.

The driver imports this to name it to Ray, and does without PyTorch.
"""

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
    """Trains one configuration; each step goes to the next epoch at which a report is due."""

    _single: TrialRunner

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
        from vadtune.core.threads import use_threads

        self._search, self._data, self._scaler, self._feature_names = search, data, scaler, feature_names
        use_threads(max(1, int(search.search.cpus_per_trial)))
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another configuration in this process, from nothing."""
        self._build(new_config)
        return True

    def _build(self, config: dict[str, Any]) -> None:
        from vadtune.search.trials.trial_runner import TrialRunner

        trial_config = self._search.trial_config(config)
        self._single = TrialRunner(trial_config, self._search, self._data, self._scaler, self._feature_names)

    def step(self) -> dict[str, Any]:
        """Trains to the next report and scores.

        Raises:
            TrialDiverged: The loss became NaN or infinite; Tune fails this trial alone.
        """
        scores = self._single.advance()
        return {**scores, EPOCH: self._single.epoch, "done": self._single.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint."""
        self._single.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Goes on from a checkpoint."""
        assert checkpoint_dir is not None
        self._single.load(Path(checkpoint_dir))
