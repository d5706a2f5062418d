"""The disk space of run folders: how much a search takes, and deleting checkpoints or whole searches.

Nothing here follows a symbolic link, and only what a search writes is deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from vadtune.artifacts.held_out_predictions import HELD_OUT_FILE
from vadtune.artifacts.run_folder import RUN_FILE, SEARCH_FILE, SNAPSHOT_FILE
from vadtune.core.errors import OutputError, SearchError

_WRITTEN = (SEARCH_FILE, SNAPSHOT_FILE, "tune", "mlflow.jsonl", "mlflow.delivered", "mlflow.rejected.jsonl")
_LAST = (RUN_FILE, "lock")  # deleted last, so that a deletion that was broken off can be repeated


def disk_use(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; what is deleted meanwhile counts nothing."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            return sum(
                disk_use(Path(entry))
                if entry.is_dir(follow_symlinks=False)
                else entry.stat(follow_symlinks=False).st_size
                for entry in entries
            )
    except OSError:
        return 0


def check_no_links(folder: Path) -> None:
    """Checks that a run folder and what is directly in it are no symbolic links.

    Raises:
        SearchError: One is.
    """
    for path in (folder, *folder.iterdir()):
        if path.is_symlink():
            raise SearchError(
                f"{path}: must be no symbolic link to be deleted, got one to {path.readlink()}; remove it"
            )


def unneeded(folder: Path, models: Collection[Path], last: Collection[Path]) -> list[Path]:
    """Returns the checkpoints of a search, and what is in them, without that which is to be kept.

    Args:
        folder: The run folder.
        models: Checkpoints to keep whole.
        last: Checkpoints of which the held-out predictions are kept.
    """
    found: list[Path] = []
    for checkpoint in sorted(_checkpoints(folder)):
        if checkpoint in models:
            continue
        if checkpoint in last and (checkpoint / HELD_OUT_FILE).exists():
            found += sorted(path for path in checkpoint.iterdir() if path.name != HELD_OUT_FILE)
        else:
            found.append(checkpoint)
    return found


def _checkpoints(folder: Path) -> Iterator[Path]:
    for trial in (folder / "tune").iterdir() if (folder / "tune").is_dir() else ():
        if trial.is_dir() and not trial.is_symlink():
            yield from (path for path in trial.glob("checkpoint_*") if path.is_dir() and not path.is_symlink())


def delete_all(paths: Collection[Path]) -> None:
    """Deletes files and folders; of a symbolic link, the link.

    Raises:
        OutputError: One cannot be deleted.
    """
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be deleted ({error.strerror}); make it yours, and try again") from error


def delete_run_folder(folder: Path) -> list[str]:
    """Deletes a run folder; returns the names in it that no search wrote, for which the folder stays.

    Raises:
        OutputError: Something in it cannot be deleted.
    """
    names = {path.name for path in folder.iterdir()}
    temporary = tuple(f".{name}-" for name in (*_WRITTEN, *_LAST, "snapshot"))
    written = {name for name in names if name in _WRITTEN or name.startswith(temporary)}
    delete_all([folder / name for name in sorted(written)])
    delete_all([folder / name for name in _LAST])
    if not (others := sorted(names - written - set(_LAST))):
        folder.rmdir()
    return others
