"""An append-only file of log entries (``mlflow.jsonl``), and how many bytes of it the store has received.

The search only appends to the file and never waits for the store, so an unreachable store does not slow it down.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from vadtune.core.errors import OutputError, SearchError
from vadtune.core.files import write_atomically
from vadtune.core.reading import bounded_lines, end_of_lines, read_bounded
from vadtune.tracking.entries import DAMAGED, LONGEST_LINE, Entry, parse_entry

logger = logging.getLogger(__name__)

SPOOL_FILE, DELIVERED_FILE = "mlflow.jsonl", "mlflow.delivered"
_CHUNK_BYTES = 64 * 1024  # about a second of a store's work, so that a delivery can be broken off


class Spool:
    """The log entries of one search in a file on disk; one process appends them, one thread takes them to send.

    Args:
        folder: The search's folder, which exists.
        replay: Whether to take all entries again, delivered or not, and to leave the record of what was delivered.
    """

    def __init__(self, folder: Path, *, replay: bool = False) -> None:
        self.folder = folder
        self._path, self._mark = folder / SPOOL_FILE, folder / DELIVERED_FILE
        self._lock = threading.Lock()
        self._unwritten, self._warned = b"", False
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
        # After a crash of the machine the last line may be incomplete.
        try:
            self._size = end_of_lines(self._path)
        except OSError as error:
            raise SearchError(
                f"{self._path}: must be a file, and cannot be read ({error.strerror}); put it back"
            ) from error
        os.ftruncate(self._file, self._size)
        self._replay, self._offset = replay, 0
        if not replay:
            try:
                self._offset = max(0, min(int(read_bounded(self._mark)), self._size))
            except (OSError, ValueError):  # nothing delivered yet; sending a line twice changes nothing
                self._offset = 0

    def append(self, entry: Entry) -> None:
        """Appends an entry; on a full disk it stays in memory until it can be written."""
        with self._lock:
            self._unwritten += json.dumps(entry, separators=(",", ":")).encode() + b"\n"
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unwritten:
                written = os.write(self._file, self._unwritten)
                self._unwritten = self._unwritten[written:]
                self._size += written
        except OSError as error:
            if not self._warned:
                advice = "results stay in memory, free some disk space"
                logger.warning("%s: cannot be written (%s); %s", self._path, error, advice)
            self._warned = True

    def entries(self) -> Iterator[Entry]:
        """Yields every entry, delivered or not, without damaged lines."""
        return read_entries(self.folder)

    def take(self) -> tuple[list[Entry], int]:
        """Returns the next undelivered entries and the offset to pass to ``mark_delivered`` once the store has them.

        A damaged line is returned as an entry of the kind ``DAMAGED``.
        """
        with self._lock:
            self._flush()
            content = b""
            while self._offset + len(content) < self._size:
                chunk = os.pread(self._file, _CHUNK_BYTES, self._offset + len(content))
                content += chunk
                if not chunk or b"\n" in content:  # without more, the file was cut from outside
                    break
        end = content.rfind(b"\n") + 1
        return [parse_entry(line) for line in content[:end].split(b"\n")[:-1]], self._offset + end

    def mark_delivered(self, offset: int) -> None:
        """Records that the store has all entries before the byte ``offset``; on a full disk, in memory alone."""
        if not self._replay:
            with contextlib.suppress(OutputError):  # what is sent twice changes nothing
                write_atomically(self._mark, str(offset).encode())
        self._offset = offset

    def keep_mark(self) -> None:
        """Ends a replay: records what was taken in it as delivered."""
        self._replay = False
        self.mark_delivered(self._offset)

    @property
    def is_unwritten(self) -> bool:
        """Whether entries are in memory alone, because the disk is full."""
        return bool(self._unwritten)

    @property
    def undelivered(self) -> int:
        """Number of bytes that the store has not received yet."""
        return self._size + len(self._unwritten) - self._offset

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read_entries(folder: Path) -> Iterator[Entry]:
    """Yields every entry that was logged in the folder of a search, without damaged lines."""
    for line in bounded_lines(folder / SPOOL_FILE, LONGEST_LINE):
        entry = parse_entry(line)
        if entry["op"] != DAMAGED:
            yield entry


def is_delivered(folder: Path) -> bool:
    """Returns whether the store has received all lines of a log; changes nothing."""
    try:
        return int(read_bounded(folder / DELIVERED_FILE)) >= end_of_lines(folder / SPOOL_FILE)
    except (OSError, ValueError):
        return False


def is_finished(folder: Path) -> bool:
    """Returns whether the last search logged in a folder finished; False if it was interrupted or killed."""
    last = b""
    with contextlib.suppress(OSError):  # nothing was logged
        for line in bounded_lines(folder / SPOOL_FILE, LONGEST_LINE):
            if b'"op":"finish"' in line or b'"op":"reopen"' in line:
                last = line
    return b'"status":"FINISHED"' in last
