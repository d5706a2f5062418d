"""Small files of every source that reads files, as a user would have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from vadtune.data import SOURCES, DataConfig


def data_config(source: str, folder: Path, **values: Any) -> DataConfig:
    """Writes what a source reads into a folder and returns a data section for it; keyword arguments extend it."""
    written = _WRITERS[source](folder) if source in _WRITERS else {}
    return SOURCES[source].model_validate({"source": source, **written, **values})


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


def write_idx(folder: Path, name: str, *, train: int = 40, test: int = 11, side: int = 6) -> np.ndarray:
    """Writes the four IDX files of MNIST or FashionMNIST; returns the images, uint8 (train + test, side, side)."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(2).integers(0, 256, (train + test, side, side)).astype(np.uint8)
    for part, rows in (("train", images[:train]), ("t10k", images[train:])):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in rows.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + rows.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + len(rows).to_bytes(4, "big") + bytes(len(rows))
        )
    return images


class Published(NamedTuple):
    """What the files of ``write_published`` hold: values in the source's units, masks 1 where observed."""

    prefix: Path
    train: np.ndarray
    test: np.ndarray
    valid: np.ndarray
    masks: dict[float, dict[str, np.ndarray]]


SENTINELS = (-100, -10)


def write_published(folder: Path, source: str, ratios: Sequence[float] = (0.3, 0.5)) -> Published:
    """Writes PREFIX.h5 and PREFIX_<ratio>.h5 in the layout of a published source."""
    rng = np.random.default_rng(3)
    prefix = folder / source
    shape = {"sfm": (5, 2), "mnist": (4, 4), "fashion_mnist": (16,)}.get(source, (6,))
    parts = {}
    for part, rows in (("train", 45), ("valid", 12), ("test", 13)):
        x = rng.integers(0, 256, (rows, *shape)) if "mnist" in source else rng.normal(size=(rows, *shape))
        parts[part] = x.astype(np.float32)
    named = {"sfm": "2d", "mnist": "x", "fashion_mnist": "x"}.get(source, "data")
    with h5py.File(f"{prefix}.h5", "w") as file:
        for part, x in parts.items():
            if part != "valid" or source == "sfm":
                file[f"{part}_{named}"] = x
    masks: dict[float, dict[str, np.ndarray]] = {}
    for ratio in ratios:
        masks[ratio] = {}
        with h5py.File(f"{prefix}_{ratio}.h5", "w") as file:
            for part, x in parts.items():
                if part == "valid" and source != "sfm":
                    continue
                mask = rng.random(x.shape[:-1] if source == "sfm" else x.shape) > ratio
                masks[ratio][part] = np.repeat(mask[..., None], 2, axis=-1) if source == "sfm" else mask
                sentinel = rng.choice(SENTINELS, x.shape)
                file[f"{part}_mask"] = mask.astype(np.float32)
                file[f"{part}_{'2d' if source == 'sfm' else 'y'}"] = np.where(masks[ratio][part], x, sentinel)
                if part == "test" and source != "sfm":
                    file["test_y_true"] = x
    return Published(prefix, parts["train"], parts["test"], parts["valid"], masks)


def _images(name: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        write_idx(folder, name)
        return {"data_dir": str(folder)}

    return write


def _published(source: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"path": str(write_published(folder, source).prefix)}


_WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "file": _table,
    "mnist": _images("MNIST"),
    "fashion_mnist": _images("FashionMNIST"),
    **{source: _published(source) for source in ("sfm", "artificial", "mosi", "mosei")},
}
