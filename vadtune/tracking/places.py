"""Finds run folders, checkpoints and sqlite stores where they lie now, also after they were moved or copied.

What lies in a run folder is recorded relative to it. Earlier versions recorded absolute paths: of those, the part
inside the run folder counts first, so that a copy uses its own files.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from vadtune.artifacts.run_folder import RUN_FILE, Run, is_uri, moved_with, read_run
from vadtune.core.errors import SearchError
from vadtune.tracking.store import sqlite_path


def find_run_folder(name: str, recorded: str, uri: str, storage: Path) -> Path | None:
    """Returns the run folder of a search that a store holds; None if it is not on this machine.

    Args:
        name: The unique name of the search.
        recorded: Where its folder was when it was logged.
        uri: The store.
        storage: The folder of run folders, or the run folder; looked at first. Then the folder is looked for beside
            the store, where it may have been moved with it, and last where it was.
    """
    return next(
        (folder.absolute() for folder in _candidates(name, recorded, uri, storage) if _is_of(folder, name)), None
    )


def _candidates(name: str, recorded: str, uri: str, storage: Path) -> Iterator[Path]:
    yield from (storage / name, storage)
    store, parts = sqlite_path(uri), Path(recorded).parts[1:]
    if store is not None:
        yield from (store.parent.joinpath(*parts[start:]) for start in reversed(range(len(parts))))
    if recorded:
        yield Path(recorded)


def _is_of(folder: Path, name: str) -> bool:
    try:
        return (folder / RUN_FILE).is_file() and read_run(folder).run == name
    except (SearchError, OSError):
        return False


def checkpoint_here(checkpoint: str, name: str, folder: Path | None, recorded: str = "") -> str:
    """Returns the absolute path of a checkpoint as it is now; a URI, or an empty text without one, as it is.

    Args:
        checkpoint: As recorded: relative to the run folder, or by earlier versions absolute.
        name: The unique name of the search.
        folder: The run folder; None if it is not on this machine.
        recorded: Where the run folder was when the search was logged.
    """
    if not checkpoint or is_uri(checkpoint):
        return checkpoint
    path = Path(checkpoint)
    if not path.is_absolute():
        return str((folder or Path(recorded)) / path)
    if folder is not None and name in path.parts:
        last = len(path.parts) - path.parts[::-1].index(name)
        here = folder.joinpath(*path.parts[last:])
        if here.exists():
            return str(here)
    return checkpoint


def store_beside(folder: Path, run: Run) -> str:
    """Returns the URI of the store of a run folder: a sqlite store that was moved or copied with it, or as recorded."""
    recorded = sqlite_path(run.tracking_uri)
    if recorded is None:
        return run.tracking_uri
    beside = moved_with(folder, run, recorded)
    return f"sqlite:///{beside}" if beside != recorded and _holds(beside, run.parent_run_id) else run.tracking_uri


def _holds(store: Path, run_id: str) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
