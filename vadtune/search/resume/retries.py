"""Retries trials whose worker, disk or checkpoint failed, a few times, from an undamaged checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import fs
from ray import tune
from ray.exceptions import RayActorError

from vadtune.core.errors import CheckpointError, VadtuneError

MAX_RETRIES = 3
RECOVERY = "recovery"
"""The result key of a trial's note that it could not continue from its last checkpoint."""


def is_transient_failure(error: BaseException | None) -> bool:
    """Returns whether a retry may succeed: after the death of a worker or node, or a full disk.

    A configuration that diverges, raises an error or needs too much memory would fail again, so it is not retried.
    """
    if isinstance(error, RayActorError):
        return not error.actor_init_failed
    return isinstance(getattr(error, "cause", error), (CheckpointError, RayActorError))  # RayActorError: its pack died


class Recoverable(tune.Trainable):
    """A trainable that survives damaged checkpoints and full disks."""

    _note = ""

    def train(self) -> dict[str, Any]:
        """Trains one step and adds the note of a recovery to its result. See tune.Trainable."""
        result: dict[str, Any] = super().train()
        if self._note:
            result[RECOVERY], self._note = self._note, ""
        return result

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Writes a checkpoint and removes its temporary files. See tune.Trainable.

        Raises:
            CheckpointError: It could not be written; the previous one still exists.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="vadtune-") as folder:
                return super().save(checkpoint_dir or folder)
        except (OSError, pyarrow.ArrowException, VadtuneError) as error:
            text = " ".join(str(error).split())
            raise CheckpointError(
                f"its checkpoint could not be written ({text}); make room, or choose another --storage"
            ) from error

    def restore(self, checkpoint_path: Any) -> None:
        """Continues from a checkpoint; if it is damaged or missing from another one, else from the start."""
        latest = checkpoint_path.checkpoint
        problems = []
        for candidate in (checkpoint_path, *_others(latest.filesystem, latest.path)):
            try:
                _check_no_pickle(getattr(candidate, "checkpoint", candidate))
                super().restore(candidate)
            except (OSError, ValueError, VadtuneError) as error:
                problems.append(" ".join(str(error).split()))
                continue
            self._note = f"went on from another checkpoint: {problems[0]}" if problems else ""
            return
        self._iteration = 0
        self.reset_config(self.config)
        self._note = f"began again at epoch 0, no checkpoint could be used: {problems[0]}"


def _check_no_pickle(checkpoint: tune.Checkpoint) -> None:
    """Raises CheckpointError if Ray would execute a file of a checkpoint when it loads it; vadtune writes none."""
    files = checkpoint.filesystem.get_file_info(fs.FileSelector(checkpoint.path, recursive=True, allow_not_found=True))
    if pickles := [info.path for info in files if info.path.endswith((".pkl", ".pickle"))]:
        raise CheckpointError(f"{pickles[0]} is not of vadtune: loading it could execute code")


def _others(filesystem: fs.FileSystem, path: str) -> Iterator[tune.Checkpoint]:
    """Yields the other checkpoints of a trial: those before the one at ``path``, newest first, then later ones.

    Later ones exist where the driver was killed before it recorded them; earlier ones may be deleted by then.
    """
    latest = PurePosixPath(path)
    selector = fs.FileSelector(str(latest.parent), allow_not_found=True)
    names = sorted(Path(info.path).name for info in filesystem.get_file_info(selector))
    names = [name for name in names if name.startswith("checkpoint_")]
    earlier, later = [name for name in names if name < latest.name], [name for name in names if name > latest.name]
    for name in (*reversed(earlier), *later):
        yield tune.Checkpoint(path=str(latest.parent / name), filesystem=filesystem)
