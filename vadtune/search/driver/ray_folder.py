"""Folders of the Rays that vadtune starts: sockets, logs and spilled objects, each Ray's in a folder of its own.

A folder is deleted when its Ray ends. What a crash leaves is deleted by the next start, so its logs can be read until
then. The process that starts a Ray holds a lock on its folder.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vadtune.core.errors import VadtuneError
from vadtune.core.locks import try_lock

_PREFIX = "vadtune-ray-"
_LONGEST_PARENT = 22  # characters: with what Ray adds, the path of a socket must have at most 107
_REMOVE_ATTEMPTS, _REMOVE_PAUSE = 10, 0.1  # seconds: processes that are ending may still write


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """Yields a new folder for a Ray and deletes it at the end, and before that those whose processes are gone.

    After an error that is not one of vadtune's own it stays until the next call.
    """
    parent = _parent()
    _delete_unused(parent)
    folder, lock = _new_folder(parent)
    is_done = False
    try:
        yield folder
        is_done = True
    except (KeyboardInterrupt, VadtuneError):
        is_done = True
        raise
    finally:
        if is_done:
            _delete(folder)
        os.close(lock)


def _parent() -> Path:
    """Returns where Ray would put its files, unless that is too long a path for its sockets."""
    named = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR")]
    short = [Path(path) for path in named if path and len(path.encode()) <= _LONGEST_PARENT and Path(path).is_dir()]
    return short[0].absolute() if short else Path("/tmp")


def _new_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        if try_lock(lock) and folder.exists():  # another process may have taken it for one that nobody uses
            return folder, lock
        os.close(lock)


def _delete_unused(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid() and try_lock(lock) and not is_used(folder):
                _delete(folder)
        finally:
            os.close(lock)


def is_used(folder: Path) -> bool:
    """Returns whether a process was started with the folder as an argument, as Ray's servers are."""
    psutil = importlib.import_module("psutil")  # comes with Ray, which adds it to sys.path
    processes = psutil.process_iter(["cmdline"])
    return any(str(folder) in word for process in processes for word in process.info["cmdline"] or ())


def _delete(folder: Path) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVE_PAUSE)
