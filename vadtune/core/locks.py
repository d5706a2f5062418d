"""Locks between processes, where the system has them: not on Windows, and not on some network file systems."""

from __future__ import annotations

import contextlib

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def try_lock(descriptor: int) -> bool:
    """Locks an open file and returns whether no other process has; the system unlocks it when it is closed."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(descriptor: int) -> bool:
    """Returns whether a process has locked the file that is open here, for reading only, by ``try_lock``."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def wait_for_lock(descriptor: int) -> None:
    """Locks an open file or folder once no other process has; does nothing where nothing can be locked."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
