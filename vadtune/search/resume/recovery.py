"""What happens to a trial whose worker, disk or checkpoint fails: tried again, a few times, from what is whole."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import fs
from ray import tune
from ray.exceptions import RayActorError
from ray.train._internal.session import _TrainingResult
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from vadtune.core.errors import CheckpointError, VadtuneError
from vadtune.search.ray_compat import replaced

MAX_RETRIES = 3
RECOVERY = "recovery"
"""The result key under which a trial tells that it could not go on from its last checkpoint."""

_CHECKPOINT = "checkpoint_"


def is_transient_failure(error: BaseException | None) -> bool:
    """Whether a failure may be gone the next time: a worker or node that died, a disk that was full.

    A configuration that diverges, breaks or needs more memory than there is does so again, and is not tried again.
    """
    if isinstance(error, RayActorError):
        return not error.actor_init_failed
    return isinstance(getattr(error, "cause", error), (CheckpointError, RayActorError))  # the latter: its pack died


@contextlib.contextmanager
def bounded_retries() -> Iterator[None]:
    """Makes Tune try a trial again only where that can help.

    Tune counts every failure alike and offers no hook between counting one and deciding on it. Two more things are put
    right on the way: one death of a worker is told twice where it came between two trials of the worker, and the trial
    then counts as being reset for ever.
    """
    told: dict[str, BaseException] = {}

    def process(original: Any, controller: TuneController, trial: Trial, exception: BaseException) -> None:
        if told.get(trial.trial_id) is exception:
            return
        told[trial.trial_id] = exception
        controller._resetting_trials.discard(trial)
        if not is_transient_failure(exception):
            trial.max_failures = 0
        original(controller, trial, exception)

    with replaced(TuneController, "_process_trial_failure", process):
        yield


class Recoverable(tune.Trainable):
    """A trainable that survives damaged checkpoints and full disks."""

    _note = ""

    def train(self) -> dict[str, Any]:
        """Adds to a result how the trial got going again, where that needs telling. See tune.Trainable."""
        result: dict[str, Any] = super().train()
        if self._note:
            result[RECOVERY], self._note = self._note, ""
        return result

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Writes a checkpoint, and leaves nothing of it in the machine's temporary folder. See tune.Trainable.

        Raises:
            CheckpointError: It could not be written; the one before is still there.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="vadtune-") as folder:
                return super().save(checkpoint_dir or folder)
        except (OSError, pyarrow.ArrowException, VadtuneError) as error:
            text = " ".join(str(error).split())
            raise CheckpointError(
                f"its checkpoint could not be written ({text}); make room, or choose another --storage"
            ) from error

    def restore(self, checkpoint_path: _TrainingResult) -> None:
        """Goes on from a checkpoint; if it is damaged or gone from another one; if there is none from the start."""
        given = checkpoint_path.checkpoint
        problems = []
        for candidate in (checkpoint_path, *_others(given.filesystem, given.path)):
            try:
                super().restore(candidate)
            except (OSError, ValueError, VadtuneError) as error:
                problems.append(" ".join(str(error).split()))
                continue
            self._note = f"went on from another checkpoint: {problems[0]}" if problems else ""
            return
        self._iteration = 0
        self.reset_config(self.config)
        self._note = f"began again at epoch 0, no checkpoint could be used: {problems[0]}"


def _others(filesystem: fs.FileSystem, path: str) -> Iterator[_TrainingResult]:
    """Yields the other checkpoints of a trial: those written before the one at ``path``, newest first, then later ones.

    Later ones are there after a driver was killed before it took note of them; by then earlier ones may be gone.
    """
    given = PurePosixPath(path)
    selector = fs.FileSelector(str(given.parent), allow_not_found=True)
    names = sorted(Path(info.path).name for info in filesystem.get_file_info(selector))
    names = [name for name in names if name.startswith(_CHECKPOINT)]
    earlier, later = [name for name in names if name < given.name], [name for name in names if name > given.name]
    for name in (*reversed(earlier), *later):
        checkpoint = tune.Checkpoint(path=str(given.parent / name), filesystem=filesystem)
        yield _TrainingResult(checkpoint=checkpoint, metrics={})
