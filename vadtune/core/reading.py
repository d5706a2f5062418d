"""Reading of files that others may have made: regular files only, within a bound, and inside the folder they belong to.

What a file declares is compared with its size before anything is reserved for it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

SMALL_FILE = 2**20
"""Bytes that a file of settings may have."""
_BLOCK = 2**16  # bytes
_MOST_MEMBERS = 10_000  # of an archive
_MOST_EXPANSION = 100  # bytes per byte of a file: real tables and masks stay well below
_ALWAYS_FINE = 2**28  # bytes, which any machine has


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading; it never waits for a pipe and never reads a device.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, os.strerror(number) if number == errno.EISDIR else "not a regular file", str(path))


def check_regular(path: Path) -> int:
    """Checks that a path is a regular file that can be read, and returns its size; raises as ``open_regular`` does."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_bounded(path: Path, most: int = SMALL_FILE) -> bytes:
    """Returns the content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: As for ``open_regular``, or it has more bytes.
    """
    with open_regular(path) as file:
        _check_size(path, os.fstat(file.fileno()).st_size, most)
        content = file.read(most + 1)
    _check_size(path, len(content), most)  # files of /proc have size 0, and content
    return content


def bounded_lines(path: Path, longest: int) -> Iterator[bytes]:
    """Yields the lines of a regular file, longer ones than ``longest`` bytes in parts; raises as ``open_regular``."""
    with open_regular(path) as file:
        yield from iter(lambda: file.readline(longest), b"")


def end_of_lines(path: Path) -> int:
    """Returns how many bytes of a regular file are before the end of its last whole line; raises as above."""
    with open_regular(path) as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise OSError(errno.EFBIG, f"at most {most} bytes expected, got {size}", str(path))


def check_inside(folder: Path, path: Path) -> None:
    """Checks that a path below a folder does not leave it by a symbolic link.

    Raises:
        OSError: It does.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(errno.EPERM, "a symbolic link that leaves its folder", str(path))


def sha256_of(path: Path, most: int) -> str:
    """Returns the SHA-256 of a regular file of at most ``most`` bytes; raises as ``read_bounded`` does."""
    with open_regular(path) as file:
        _check_size(path, os.fstat(file.fileno()).st_size, most)
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_archive(archive: zipfile.ZipFile, there: int) -> None:
    """Checks the members of a zip file of ``there`` bytes before one is unpacked.

    Raises:
        ValueError: They are too many, or unpack to far more than the size of the file.
    """
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise ValueError(f"it must have at most {_MOST_MEMBERS} members, got {len(members)}")
    check_expansion(sum(member.file_size for member in members), there)


def check_expansion(declared: float, there: int) -> None:
    """Checks that a compressed file does not unpack to far more than its size, before it is unpacked.

    Args:
        declared: Bytes that it says it unpacks to.
        there: Bytes of the file.

    Raises:
        ValueError: It does.
    """
    if declared > max(_ALWAYS_FINE, _MOST_EXPANSION * there):
        raise ValueError(
            f"it unpacks to {declared / 1e9:,.1f} GB, more than {_MOST_EXPANSION} times its {there / 1e6:,.1f} MB; "
            "store it without compression if that is meant"
        )
