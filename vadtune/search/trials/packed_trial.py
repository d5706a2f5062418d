"""The trainable of packed trials. It does not import torch, so that hundreds of its processes cost little."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from vadtune.artifacts.run_folder import MOST_STATE_BYTES, STATE_FILE, STATE_HASH
from vadtune.config import SearchFile
from vadtune.core.reading import read_bounded
from vadtune.search.algorithms.schedulers import EPOCH, next_report, report_epochs
from vadtune.search.resume.retries import Recoverable


def _call_with_retry(method: Any, *arguments: Any) -> Any:
    """Calls an idempotent method of a pack; Ray repeats the call when a pack that died has restarted."""
    return method.options(max_task_retries=-1).remote(*arguments)


class PackedTrial(Recoverable):
    """Asks a pack to train one configuration from report to report."""

    def setup(self, config: dict[str, Any], *, search: SearchFile, packs: Sequence[Any], data: Any) -> None:
        """Chooses the pack with the fewest trials. See tune.Trainable.

        Args:
            config: The sampled parameters under dotted keys.
            search: The search file.
            packs: Handles of Pack actors.
            data: A reference to the packs' data, which keeps it in the object store for packs that restart.
        """
        self._search, self._packs = search, packs
        self._joined = ""
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another configuration in this process."""
        self._leave()
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        loads = ray.get([_call_with_retry(pack.load) for pack in self._packs])
        self._pack = self._packs[loads.index(min(loads))]
        self._config, self._epoch = config, 0
        # Not the trial's id: the process of a trial that is retried leaves its pack when the next one has joined it.
        self._key = f"{self.trial_id}-{secrets.token_hex(4)}"
        self._due = report_epochs(self._search.search, self._search.epochs)

    def _leave(self) -> None:
        if self._joined:
            ray.get(_call_with_retry(self._pack.leave, self._joined))
            self._joined = ""

    def step(self) -> dict[str, Any]:
        """Trains in the pack to the next report.

        Raises:
            TrialDiverged: The loss or a score became NaN or infinite; Tune fails this trial alone.
            CheckpointError: The pack died since the last step; Tune restores the trial into the new one.
        """
        self._joined = self._key
        due = next_report(self._due, self._epoch)
        scores = ray.get(self._pack.advance.remote(self._joined, self._config, due, since=self._epoch))
        self._epoch = due
        return {**scores, EPOCH: due, "done": due >= self._due[-1]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint with the same files as an unpacked trial."""
        for name, content in ray.get(self._pack.checkpoint.remote(self._joined)).items():
            path = Path(checkpoint_dir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Loads the training state into the pack."""
        assert checkpoint_dir is not None
        folder = Path(checkpoint_dir)
        content = read_bounded(folder / STATE_FILE, MOST_STATE_BYTES)
        sha256 = read_bounded(folder / STATE_HASH).decode()
        self._joined = self._key
        self._epoch = ray.get(_call_with_retry(self._pack.restore, self._joined, content, sha256))

    def cleanup(self) -> None:
        """Leaves the pack."""
        self._leave()
