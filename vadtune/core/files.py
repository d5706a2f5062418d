"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vadtune.core.errors import OutputError, VadtuneError

NOT_ARRAYS = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, OverflowError, MemoryError),
    *(RuntimeError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile),
)
"""What numpy was seen to raise on damaged npy and npz files: their headers are Python literals, in zip archives."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk, or of a process that may write no more to it."""


def is_full(error: BaseException) -> bool:
    """Returns whether an error is that of a full disk, see ``FULL``."""
    return isinstance(error, OSError) and error.errno in FULL


def is_almost_full(folder: Path) -> bool:
    """Returns whether a folder's disk has less than 1 GiB left, or this user may write no MiB more to it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
        return shutil.disk_usage(folder).free < 2**30
    except OSError as error:
        return is_full(error)


def _not_written(path: Path, error: OSError, another: str) -> OutputError:
    advice = f"make room, or name another {another}" if is_full(error) else f"name another {another}"
    return OutputError(f"{path}: cannot be written ({error.strerror}); {advice}")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file and its parent folders; readers see the old content or the new, never a part.

    Raises:
        OutputError: The file cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what is written there becomes ``path`` if the block succeeds, else it is deleted.

    Raises:
        OutputError: The file or its parent folders, which are created, cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            temporary.replace(path)
    except OSError as error:
        raise _not_written(path, error, "place") from error


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that becomes ``folder`` if the block succeeds and is deleted if it raises.

    Args:
        folder: Must be new or empty, unless ``overwrite`` is set; parents are created.
        overwrite: Replace what is there. The old folder stays if the new one cannot take its place.

    Raises:
        OutputError: ``folder`` is not empty, or cannot be written.
    """
    folder = folder.absolute()
    if not overwrite:
        check_new_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            yield new
            if overwrite:
                with suppress(FileNotFoundError):
                    folder.rename(old)
            try:
                new.replace(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise _not_written(folder, error, "folder") from error


def check_new_folder(folder: Path) -> None:
    """Checks that a folder is new or empty and can be written, before any work is done; creates its parents.

    Raises:
        OutputError: It is not empty, or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: must be new or empty, and is not; name another folder")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.absolute().parent):
            pass
    except OSError as error:
        raise _not_written(folder, error, "folder") from error


def check_writable(folder: Path) -> None:
    """Checks that a folder can be written to or created, before any work is done; creates nothing.

    Raises:
        OutputError: It cannot.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _not_written(folder, error, "folder") from error


def fetch_folder(uri: str, to: Path) -> None:
    """Downloads the folder that a URI such as ``s3://bucket/folder`` names.

    Args:
        uri: Of a file system that pyarrow knows.
        to: The local folder; new or empty.

    Raises:
        VadtuneError: The remote folder does not exist or cannot be read, or ``to`` cannot be written.
    """
    import pyarrow  # slow to import, and needed only where checkpoints are stored behind a URI
    from pyarrow import fs

    with new_folder(to) as folder:
        try:
            source, path = fs.FileSystem.from_uri(uri)
            fs.copy_files(path, str(folder), source_filesystem=source, destination_filesystem=fs.LocalFileSystem())
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise VadtuneError(f"{uri}: cannot be fetched ({reason}); set the credentials of its storage") from error


def cache_folder() -> Path:
    """Returns the user's folder for files that can be recreated."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "vadtune"
