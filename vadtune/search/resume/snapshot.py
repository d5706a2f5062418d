"""The state from which a search is resumed: trials, searcher and meter of one moment, in one file, whole or not at all.

Tune writes these as several files, one after another and in place. A driver that is killed meanwhile leaves files cut
short, or of different moments: trials the searcher has forgotten, or a count of samples that is not theirs.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import fs
from ray.tune.execution.tune_controller import TuneController

from vadtune.artifacts.run_folder import SNAPSHOT_FILE, is_uri
from vadtune.core.errors import VadtuneError
from vadtune.core.files import write_atomically
from vadtune.search.ray_compat import replaced
from vadtune.search.resume.upgrade import upgrade_state

logger = logging.getLogger(__name__)

_TRIALS = "experiment_state"
_TUNER = "tuner.pkl"
_SHARE = 0.1  # of the search's own time, at most, to write snapshots


@contextlib.contextmanager
def atomic_snapshots(folder: Path) -> Iterator[None]:
    """Keeps each snapshot of the search that runs as one file; Tune offers no hook after writing its own.

    A snapshot holds all trials, so it takes the longer the more there are: then there are fewer of them.

    Args:
        folder: Of the search.
    """
    warned: list[OSError | VadtuneError] = []

    def save(original: Any, controller: TuneController) -> None:
        try:
            original(controller)
            staging, session = Path(controller._storage.experiment_driver_staging_path), controller._session_str
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for path in sorted(staging.glob(f"*-{session}.*")):
                    archive.write(path, path.name.replace(f"-{session}", ""))
            write_atomically(folder / SNAPSHOT_FILE, buffer.getvalue())
        except (OSError, VadtuneError) as error:  # a full disk must not end a search
            if not warned:
                logger.warning("what a resume starts from cannot be written (%s); make room", error)
            warned.append(error)

    due = 0.0

    def checkpoint(original: Any, controller: TuneController, force: bool = False, wait: bool = False) -> None:
        nonlocal due
        began = time.monotonic()
        if force or began >= due:
            original(controller, force=force, wait=wait)
            ended = time.monotonic()
            due = ended + (ended - began) * (1 / _SHARE - 1)

    with replaced(TuneController, "save_to_dir", save), replaced(TuneController, "checkpoint", checkpoint):
        yield


def restore_snapshot(folder: Path, tune: str) -> set[str]:
    """Gives Tune the last snapshot to start from, as the newest of its files.

    Args:
        folder: Of the search.
        tune: Where Tune keeps its state, a folder or a URI.

    Returns:
        The ids of the trials the snapshot knows; none if the search ended before its first snapshot, and starts anew.

    Raises:
        VadtuneError: It is damaged, or where Tune keeps its state cannot be written.
    """
    path = folder / SNAPSHOT_FILE
    try:
        with zipfile.ZipFile(path) as archive:
            files = {Path(name).name: upgrade_state(archive.read(name)) for name in archive.namelist()}
        trials = _trial_ids(json.loads(files[f"{_TRIALS}.json"]))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise VadtuneError(f"{path}: cannot be read ({error}); start the search again") from error
    now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"  # as Tune names its files, of which the last in order counts
    try:
        filesystem, place = fs.FileSystem.from_uri(tune if is_uri(tune) else Path(tune).as_uri())
        for name, content in files.items():
            with filesystem.open_output_stream(f"{place}/{Path(name).stem}-{now}{Path(name).suffix}") as stream:
                stream.write(content)
        with filesystem.open_input_stream(f"{place}/{_TUNER}") as stream:
            content = stream.read()
        if (upgraded := upgrade_state(content)) != content:
            with filesystem.open_output_stream(f"{place}/{_TUNER}") as stream:
                stream.write(upgraded)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise VadtuneError(f"{tune}: cannot be written ({error}); make room, or set its credentials") from error
    return trials


def _trial_ids(state: dict[str, Any]) -> set[str]:
    return {json.loads(trial)["trial_id"] for trial, _ in state["trial_data"]}
