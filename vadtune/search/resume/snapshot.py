"""Snapshots from which a search is resumed: trials, searcher and GPU-hours of one moment, in one file.

Tune writes them as several files in place, so a driver that is killed leaves truncated files, or files of different
moments.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pyarrow
import ray
from pyarrow import fs

from vadtune.artifacts.run_folder import SNAPSHOT_FILE, is_uri
from vadtune.core.errors import SearchError, VadtuneError
from vadtune.core.reading import check_archive, open_regular
from vadtune.search.adaptation import VERSIONS
from vadtune.search.ray_compat import saved_states
from vadtune.search.resume.generator_state import GENERATOR_STATE, adapted_state
from vadtune.search.resume.pickle_check import NotListedError, check_state
from vadtune.search.resume.upgrade import OLD_NAMES, upgrade_state

logger = logging.getLogger(__name__)

_TRIALS = "experiment_state"
_ERROR = "error.pkl"
_STATES = (_TRIALS, "searcher-state", GENERATOR_STATE, "callback-states", "tuner.pkl")


def saved_at(folder: Path) -> float:
    """Returns when the snapshot of a search was written, by ``time.time``; 0 if there is none."""
    try:
        return (folder / SNAPSHOT_FILE).stat().st_mtime
    except OSError:
        return 0.0


def check_trusted(folder: Path) -> None:
    """Checks that nobody else can have written the files of a search that Ray loads with pickle.

    Args:
        folder: The folder of the search.

    Raises:
        SearchError: One belongs to another user, or others may write it or its folder.
    """
    for path in (folder, folder / SNAPSHOT_FILE, *folder.rglob("*.pkl"), *folder.glob(f"tune/{_TRIALS}*")):
        try:
            state = path.lstat()
        except OSError:
            continue
        own_group = state.st_gid == os.getgid()
        if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP):
            owner = f"owner {state.st_uid}, mode {stat.filemode(state.st_mode)}"
            raise SearchError(
                f"{path}: a resume executes what is in it, so it must be yours and no other user may write it, got "
                f"{owner}; if you trust it: chown -R $USER {folder} && chmod -R go-w {folder}"
            )


@contextlib.contextmanager
def atomic_snapshots(folder: Path) -> Iterator[None]:
    """Writes each state that Tune saves to one file in the folder of the search, completely or not at all.

    Raises:
        SearchError: Tune saves its state in another form.
    """
    warned = False

    def save(write: Callable[[], dict[str, Path]]) -> None:
        nonlocal warned
        try:
            files = write()
            with tempfile.TemporaryDirectory(prefix=".snapshot-", dir=folder) as scratch:
                new = Path(scratch) / SNAPSHOT_FILE
                with zipfile.ZipFile(new, "w") as archive:
                    for name, path in files.items():
                        archive.write(path, name)
                new.replace(folder / SNAPSHOT_FILE)
        except OSError as error:  # a full disk must not end a search
            if not warned:
                logger.warning("the snapshot for a resume cannot be written (%s); make room", error)
            warned = True
            return
        if f"{_TRIALS}.json" not in files:
            message = f"Ray {ray.__version__} must save {_TRIALS}.json, got {sorted(files)}"
            raise SearchError(f"{message}; install 'ray{VERSIONS}'")

    with saved_states(save):
        yield


def _check_bounds(path: Path) -> None:
    """Raises VadtuneError unless a snapshot is a regular file, and unpacks to what can be expected; or is not there."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            check_archive(archive, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise VadtuneError(f"{path}: cannot be read ({error}); start the search again") from error


def restore_snapshot(folder: Path, tune: str, samples: int | None = None) -> set[str]:
    """Writes the last snapshot as the newest of Tune's files, from which Tune then restores.

    Args:
        folder: The folder of the search.
        tune: Folder or URI in which Tune keeps its state.
        samples: Number of trials that the search is to have; None if only a budget ends it.

    Returns:
        The ids of the trials in the snapshot; empty without a snapshot, where the search starts from its beginning.

    Raises:
        VadtuneError: The snapshot is damaged, or ``tune`` cannot be written.
        SearchError: Others may have written it, see ``check_trusted``, or loading it would execute code.
    """
    check_trusted(folder)
    path = folder / SNAPSHOT_FILE
    _check_bounds(path)
    try:
        with zipfile.ZipFile(path) as archive:
            files = {Path(name).name: _checked(archive.read(name)) for name in archive.namelist()}
        state = json.loads(files[f"{_TRIALS}.json"])
        trials = {json.loads(trial)["trial_id"] for trial, _ in state["trial_data"]}
        if (name := f"{GENERATOR_STATE}.json") in files:
            files[name] = adapted_state(files[name], tune, samples)
    except FileNotFoundError:
        return set()
    except NotListedError as error:
        raise SearchError(f"{path}: {error}; resume only searches of your own") from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise VadtuneError(f"{path}: cannot be read ({error}); start the search again") from error
    now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"  # as Tune names its files; it reads the last one in order
    try:
        filesystem, place = fs.FileSystem.from_uri(tune if is_uri(tune) else Path(tune).as_uri())
        _delete_states(filesystem, place)
        for name, content in files.items():
            with filesystem.open_output_stream(f"{place}/{Path(name).stem}-{now}{Path(name).suffix}") as stream:
                stream.write(content)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise VadtuneError(f"{tune}: cannot be written ({error}); make room, or set its credentials") from error
    return trials


def _checked(content: bytes) -> bytes:
    """Returns a state file that was checked, naming the modules of today."""
    check_state(content, OLD_NAMES)
    return upgrade_state(content)


def _delete_states(filesystem: fs.FileSystem, place: str) -> None:
    """Deletes what Tune would load beside the snapshot: states that it saved before, its own, and errors of trials."""
    for info in filesystem.get_file_info(fs.FileSelector(place, recursive=True)):
        is_state = info.base_name.startswith(_STATES) and info.path == f"{place}/{info.base_name}"
        if is_state or info.base_name == _ERROR:
            filesystem.delete_file(info.path)
