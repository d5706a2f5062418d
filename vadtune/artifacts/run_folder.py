"""Run folders: the files of one search, the lock of the process that runs it, and finding a run by name.

search.yaml     the search, overrides applied
run.json        the names of the run and of its MLflow store
mlflow.jsonl    everything that was logged, in order; mlflow.delivered: how much of it the MLflow store has received;
                mlflow.rejected.jsonl: the lines that the store rejected, each with the reason
snapshot.zip    the state of the search that a resume starts from
tune/           Ray Tune's state and checkpoints; those of unfinished trials have training states, see training_state.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vadtune.core.errors import SearchError, unknown_name
from vadtune.core.files import write_atomically
from vadtune.core.locks import is_locked, try_lock
from vadtune.core.reading import read_bounded

SEARCH_FILE, RUN_FILE, SNAPSHOT_FILE = "search.yaml", "run.json", "snapshot.zip"
STATE_FILE, STATE_HASH = "training_state.safetensors", "training_state.sha256"
MOST_STATE_BYTES = 2**31
_LOCK_FILE = "lock"


@dataclass(frozen=True)
class Run:
    """The content of run.json.

    Attributes:
        run: The unique name of the run.
        experiment: The name of its MLflow experiment.
        experiment_id: The id of the experiment in the MLflow store.
        parent_run_id: The id of the MLflow run that stands for the whole search.
        tracking_uri: The MLflow store, without credentials.
        tune: Folder, relative to the run folder, or URI of Ray Tune's state and checkpoints; absolute in searches of
            earlier versions.
        folder: Where the run folder was when this was written; empty in searches of earlier versions.
    """

    run: str
    experiment: str
    experiment_id: str
    parent_run_id: str
    tracking_uri: str
    tune: str
    folder: str = ""

    @property
    def written_in(self) -> Path | None:
        """Where the run folder was when run.json was written; None if that is unknown."""
        if self.folder:
            return Path(self.folder)
        return Path(self.tune).parent if Path(self.tune).is_absolute() else None


def is_uri(storage: str) -> bool:
    """Returns whether a storage is a URI such as ``s3://bucket/runs`` and not a folder."""
    return "://" in storage


def local_folder(storage: str) -> Path:
    """Returns the folder of run folders: the storage itself, or ``runs`` where the storage is a URI."""
    return Path("runs") if is_uri(storage) else Path(storage)


def keep_last_model(last: Path) -> None:
    """Deletes what only training needs of a trial that has ended, given its last checkpoint.

    That is the training state, and, where the last checkpoint is there, all others of the trial.
    """
    for name in (STATE_FILE, STATE_HASH):
        for path in last.parent.glob(f"checkpoint_*/{name}"):
            path.unlink(missing_ok=True)
    for other in last.parent.glob("checkpoint_*") if last.is_dir() else ():
        if other.name != last.name:
            shutil.rmtree(other, ignore_errors=True)  # which follows no link


def write_run(folder: Path, run: Run) -> None:
    """Writes run.json."""
    write_atomically(folder / RUN_FILE, (json.dumps(asdict(run), indent=1) + "\n").encode())


def read_run(folder: Path) -> Run:
    """Reads run.json.

    Raises:
        SearchError: It is missing or damaged.
    """
    try:
        run = Run(**json.loads(read_bounded(folder / RUN_FILE)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        # Without the error's text, which may repeat what a file holds that is no run.json.
        reason = error.strerror if isinstance(error, OSError) else "it is not what a search wrote"
        raise SearchError(f"{folder}: holds no search to resume ({RUN_FILE} cannot be read: {reason})") from error
    if not all(isinstance(value, str) for value in asdict(run).values()):
        raise SearchError(f"{folder}: holds no search to resume ({RUN_FILE} must hold texts, got others)")
    return run


def tune_place(folder: Path, run: Run) -> str:
    """Returns folder or URI of Ray Tune's state and checkpoints, wherever the run folder lies now."""
    if is_uri(run.tune):
        return run.tune
    recorded, here = Path(run.tune), folder / Path(run.tune).name
    return str(recorded if recorded.is_dir() and not here.is_dir() else here)


def moved_with(folder: Path, run: Run, path: Path) -> Path:
    """Returns where a file beside a run folder is, if both were moved or copied together."""
    before = run.written_in
    return path if before is None else Path(os.path.normpath(folder.absolute() / os.path.relpath(path, before)))


def run_folders(storage: Path) -> list[Path]:
    """Returns the run folders in ``storage``, sorted by name."""
    return sorted(path.parent for path in storage.glob(f"*/{RUN_FILE}"))


def find_run(name: str, storage: Path) -> Path:
    """Returns the absolute path of a run folder.

    Args:
        name: The unique name of the run, or the path of its folder.
        storage: The folder of run folders.

    Raises:
        SearchError: No run has this name.
    """
    for folder in (storage / name, Path(name)):
        if folder.is_dir():
            return folder.absolute()
    known = [path.name for path in storage.iterdir() if path.is_dir()] if storage.is_dir() else []
    raise SearchError(f"{unknown_name('search', name, known)} (in {storage})")


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on a run folder; the operating system releases it when the process exits.

    Raises:
        SearchError: Another process holds the lock, or this user may not hold it.
    """
    path = folder / _LOCK_FILE
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise SearchError(f"{path}: cannot be opened ({error.strerror}); make the folder yours") from error
    try:
        if not try_lock(lock):
            raise SearchError(
                f"{folder.name}: must not be running already, and another process runs it; wait for that one to end"
            )
        yield
    finally:
        os.close(lock)


def is_running(folder: Path) -> bool:
    """Returns whether a process holds the lock of a run folder; creates and changes nothing."""
    try:
        lock = os.open(folder / _LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # never run, or by another user
        return False
    try:
        return is_locked(lock)
    finally:
        os.close(lock)
