"""Writing files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vadtune.errors import VadtuneError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, and the folders it is in; a reader sees the old content or the new, never a part.

    Raises:
        VadtuneError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError as error:
        raise VadtuneError(f"{path}: cannot be written ({error.strerror}); name another place") from error


def check_writable(folder: Path) -> None:
    """Makes sure, before any work is done, that a folder can be written to or created; creates nothing.

    Raises:
        VadtuneError: It cannot.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise VadtuneError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
