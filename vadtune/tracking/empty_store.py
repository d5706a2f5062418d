"""Seeds a new SQLite store from a cached empty one.

MLflow creates a database by all migrations of its history, with a commit each: 1.7 seconds of CPU time, and 3 to 9
seconds on a busy disk. The result is the same each time, so an empty one is kept in the user's cache, for one version
of MLflow.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from vadtune.core.errors import OutputError
from vadtune.core.files import cache_folder, is_full, write_atomically


@contextlib.contextmanager
def seeded(path: Path) -> Iterator[None]:
    """Creates a missing database from the cached empty one, for the block in which MLflow opens it.

    Without a cached one, or with a damaged one, MLflow creates the database, and a copy of it is cached afterwards.

    Args:
        path: The database file.

    Raises:
        OSError: The disk is full; nothing is created.
    """
    if path.exists() or set(path.name) & set(":?"):  # in memory, or with options: not a file of this name
        yield
        return
    is_seeded = False
    content = None
    with contextlib.suppress(OSError, EOFError, zlib.error):  # none is cached, or it is damaged
        content = gzip.decompress(_cached().read_bytes())
    if content is not None:
        try:
            _create(path, content)
        except OSError as error:
            if is_full(error):
                raise
        else:
            is_seeded = True
    yield
    if not is_seeded:
        with contextlib.suppress(OSError, sqlite3.Error, OutputError):
            _keep(path)


def _cached() -> Path:
    return cache_folder() / f"empty-mlflow-{version('mlflow')}.db.gz"


def _create(path: Path, content: bytes) -> None:
    """Creates a file whole or not at all; leaves one that exists meanwhile as it is."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        new.write_bytes(content)
        with contextlib.suppress(FileExistsError):
            os.link(new, path)


def _keep(path: Path) -> None:
    """Caches a copy of a database that MLflow has just created, unless something was logged to it since."""
    with contextlib.closing(sqlite3.connect(path)) as made, contextlib.closing(sqlite3.connect(":memory:")) as copy:
        made.backup(copy)
        experiments = [name for (name,) in copy.execute("SELECT name FROM experiments")]
        if experiments != ["Default"] or copy.execute("SELECT * FROM runs").fetchone():
            return
        copy.execute("DELETE FROM experiments")  # it names this folder; MLflow adds one to a store without any
        copy.commit()
        copy.execute("VACUUM")
        content = copy.serialize()
    write_atomically(_cached(), gzip.compress(content))
