"""Writing files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path

from vadtune.core.errors import VadtuneError

NOT_ARRAYS = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, OverflowError, MemoryError),
    *(RuntimeError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile),
)
"""What numpy raises, by experience, where an npy or npz file is damaged: its headers are Python literals, in zips."""


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


def create_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is not there yet, whole or not at all; one that is there meanwhile stays as it is.

    Raises:
        OSError: It cannot be written, or its file system knows no hard links.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        temporary.write_bytes(content)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)


def cache_folder() -> Path:
    """Returns where what can be made again is kept for this user."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "vadtune"


def fetch_folder(uri: str, to: Path) -> None:
    """Copies a folder that a URI such as ``s3://bucket/folder`` names.

    Raises:
        VadtuneError: It is not there, or cannot be read.
    """
    import pyarrow  # slow, and needed by those who keep things behind a URI only
    from pyarrow import fs

    try:
        source, path = fs.FileSystem.from_uri(uri)
        fs.copy_files(path, str(to), source_filesystem=source, destination_filesystem=fs.LocalFileSystem())
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise VadtuneError(f"{uri}: cannot be fetched ({reason}); set the credentials of its storage") from error


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
