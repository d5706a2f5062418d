"""The folder of a search: which run it holds, whether a process works on it, and how to find one by name.

search.yaml     the search, overrides applied
run.json        what the run is called and where it is logged
mlflow.jsonl    all that was logged, in order; mlflow.delivered: how much of it the MLflow store has
snapshot.zip    what a resume starts from
tune/           the state and the checkpoints of Ray Tune; training_state.safetensors in each: what a trial goes on from
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vadtune.core.errors import SearchError, unknown_name
from vadtune.core.files import write_atomically

SEARCH_FILE, RUN_FILE, SNAPSHOT_FILE = "search.yaml", "run.json", "snapshot.zip"
STATE_FILE, STATE_HASH = "training_state.safetensors", "training_state.sha256"
_LOCK_FILE = "lock"


@dataclass(frozen=True)
class Run:
    """What a search's folder says of its run.

    Attributes:
        run: Its unique name.
        experiment: Its MLflow experiment.
        experiment_id: The store's id of that.
        parent_run_id: The MLflow run of the search as a whole.
        tracking_uri: The MLflow store, without its secrets.
        tune: Where Ray Tune keeps state and checkpoints: a folder, or a URI.
    """

    run: str
    experiment: str
    experiment_id: str
    parent_run_id: str
    tracking_uri: str
    tune: str


def is_uri(storage: str) -> bool:
    """Whether a storage is named by a URI such as ``s3://bucket/runs``, and not a folder."""
    return "://" in storage


def local_folder(storage: str) -> Path:
    """Returns where the folders of searches are: with Ray's state and checkpoints elsewhere, in ``runs``."""
    return Path("runs") if is_uri(storage) else Path(storage)


def write_run(folder: Path, run: Run) -> None:
    """Writes the description of a run into its folder."""
    write_atomically(folder / RUN_FILE, (json.dumps(asdict(run), indent=1) + "\n").encode())


def read_run(folder: Path) -> Run:
    """Reads the description of a run.

    Raises:
        SearchError: The folder holds none, or a damaged one.
    """
    try:
        run = Run(**json.loads((folder / RUN_FILE).read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SearchError(f"{folder}: holds no search to resume ({RUN_FILE} cannot be read: {error})") from error
    if not all(isinstance(value, str) for value in asdict(run).values()):
        raise SearchError(f"{folder}: holds no search to resume ({RUN_FILE} must hold texts, got {asdict(run)})")
    return run


def run_folders(storage: Path) -> list[Path]:
    """Returns the folders of the searches kept in ``storage``, by name."""
    return sorted(path.parent for path in storage.glob(f"*/{RUN_FILE}"))


def find_run(name: str, storage: Path) -> Path:
    """Returns the folder of a run.

    Args:
        name: The unique name of the run, or its folder.
        storage: Where searches are kept.

    Raises:
        SearchError: There is none of that name.
    """
    for folder in (storage / name, Path(name)):
        if folder.is_dir():
            return folder.absolute()
    known = [path.name for path in storage.iterdir() if path.is_dir()] if storage.is_dir() else []
    raise SearchError(f"{unknown_name('search', name, known)} (in {storage})")


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds a search's folder for this process; the system lets go of it however the process ends.

    Raises:
        SearchError: Another process holds it.
    """
    with (folder / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchError(
                f"{folder.name}: must not be running already, and another process runs it; wait for that one to end"
            ) from error
        yield


def is_running(folder: Path) -> bool:
    """Whether a process works on a search's folder now."""
    try:
        with run_lock(folder):
            return False
    except SearchError:
        return True
