"""Small files of every source that reads files, as a user would have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vadtune.config import DataConfig


def data_config(source: str, folder: Path, **values: Any) -> DataConfig:
    """Writes what a source reads into a folder and returns a data section for it; keyword arguments extend it."""
    written = _WRITERS[source](folder) if source in _WRITERS else {}
    return DataConfig.model_validate({"source": source, **written, **values})


def write_table(folder: Path, rows: int = 80) -> Path:
    """Writes a CSV of four numeric columns, two of them whole numbers, and one of text."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=rows)
    lines = ["age,name,height,weight,visits"]
    for i, s in enumerate(size):
        lines.append(f"{40 + 10 * s:.0f},row {i},{170 + 8 * s:.3f},{70 + 9 * s + rng.normal():.2f},{i % 7}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def _table(folder: Path) -> dict[str, Any]:
    return {"path": str(write_table(folder)), "columns": ["age", "height", "weight", "visits"]}


_WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {"file": _table}
