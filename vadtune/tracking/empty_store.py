"""Databases of MLflow's that are begun with a copy of an empty one.

MLflow makes a new database by the fifty migrations of its history, which takes three seconds. What it makes is the same
each time, so it is kept in the user's cache, for this version of MLflow alone.
"""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from vadtune.core.errors import VadtuneError
from vadtune.core.files import cache_folder, create_atomically, write_atomically


@contextlib.contextmanager
def begun_with_copy(path: Path) -> Iterator[None]:
    """Begins a database that is not there yet with a copy, for the block in which MLflow opens it; without one, keeps a
    copy of what MLflow made. Where there is no place for copies, or a copy is damaged, MLflow makes its own as ever.

    Args:
        path: Of the database.
    """
    if path.exists() or set(path.name) & set(":?"):  # in memory, or with options: no file of this name
        yield
        return
    copied = False
    with contextlib.suppress(OSError, EOFError, zlib.error, RuntimeError):  # of which some tell of damage
        if content := gzip.decompress(_copy().read_bytes()):
            create_atomically(path, content)
            copied = True
    yield
    if not copied:
        # AttributeError: an older SQLite cannot give a database's bytes.
        with contextlib.suppress(OSError, sqlite3.Error, RuntimeError, VadtuneError, AttributeError):
            _keep(path)


def _copy() -> Path:
    return cache_folder() / f"empty-mlflow-{version('mlflow')}.db.gz"


def _keep(path: Path) -> None:
    """Keeps a copy of a database that MLflow has just made, unless something was logged to it since."""
    with contextlib.closing(sqlite3.connect(path)) as made, contextlib.closing(sqlite3.connect(":memory:")) as copy:
        made.backup(copy)
        experiments = [name for (name,) in copy.execute("SELECT name FROM experiments")]
        if experiments != ["Default"] or copy.execute("SELECT * FROM runs").fetchone():
            return
        copy.execute("DELETE FROM experiments")  # it names this folder; MLflow makes another where there is none
        copy.commit()
        copy.execute("VACUUM")
        content = copy.serialize()
    write_atomically(_copy(), gzip.compress(content))
