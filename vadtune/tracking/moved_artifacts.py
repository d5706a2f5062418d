"""Corrects where a sqlite store keeps its artifacts, after it was moved or copied with its ``mlruns`` folder.

MLflow records absolute URIs for experiments and runs and has no call that changes them, so its tables are changed here:
a copy would write into the folder of the original.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path


def correct_artifact_folders(store: Path) -> None:
    """Names the folder ``mlruns`` beside a store in it, for experiments of vadtune whose artifacts are there.

    A database with other tables stays as it is.

    Args:
        store: The database file, which exists.
    """
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(store)) as database, database:
        query = "SELECT experiment_id, name, artifact_location FROM experiments"
        for experiment, name, before in database.execute(query).fetchall():
            folder = store.parent / "mlruns" / name
            now = folder.as_uri()
            if before == now or not str(before).endswith(f"/{'/'.join(now.split('/')[-2:])}") or not folder.is_dir():
                continue
            database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (now, experiment))
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? "
                "AND substr(artifact_uri, 1, ?) = ?",
                (now, len(before) + 1, experiment, len(before) + 1, f"{before}/"),
            )
