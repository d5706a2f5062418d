"""Which checkpoints of a search an export needs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vadtune.artifacts.disk_use import unneeded
from vadtune.artifacts.model_folder import MANIFEST
from vadtune.core.errors import SearchError
from vadtune.tracking.commands import next_command
from vadtune.tracking.queries import ranked
from vadtune.tracking.run_log import read_results
from vadtune.tracking.spool import is_finished


class Pruning(NamedTuple):
    """What is kept and what is deleted.

    Attributes:
        kept: The checkpoints that stay, of the best trial first.
        deleted: Checkpoints, and what is in checkpoints.
    """

    kept: list[Path]
    deleted: list[Path]


def plan_pruning(folder: Path, keep: int) -> Pruning:
    """Plans to keep the models of the best trials of a search, and the held-out predictions of all.

    Args:
        folder: The run folder.
        keep: Number of trials whose last checkpoints stay.

    Raises:
        SearchError: The search is not finished, so that a resume needs the checkpoints; or the folder holds none.
    """
    found = read_results(folder)
    if not is_finished(folder):
        raise SearchError(
            f"{folder.name}: must be finished to be pruned, as a resume needs its checkpoints; complete it: "
            f"{next_command(f'resume {folder.name}', folder=folder)}"
        )

    best = [Path(trial.checkpoint) for trial in ranked(found.trials, found.metric) if trial.checkpoint]
    kept = [path for path in best if any(path.glob(f"*/{MANIFEST}"))][:keep]
    last = {Path(trial.checkpoint) for trial in found.trials if trial.checkpoint}
    return Pruning(kept, unneeded(folder, kept, last))
