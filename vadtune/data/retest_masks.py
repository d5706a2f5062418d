"""Masks of the test rows: drawn, or kept in a file so that later retests and other programs use the same ones."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vadtune.core.errors import ConfigError, ModelFolderError
from vadtune.core.files import NOT_ARRAYS, write_atomically
from vadtune.core.memory import check_memory
from vadtune.core.reading import check_inside, read_bounded
from vadtune.core.text import one_line
from vadtune.data import IncompleteDataset, mask_sha256

FORMAT_VERSION = 1
_MOST_BYTES = 2**30


class MaskKey(NamedTuple):
    """Missing ratio and seed that a mask of the test rows is drawn from."""

    ratio: float
    seed: int


Masks = dict[MaskKey, np.ndarray]
"""Each mask is bool (n_test, d), True = observed."""


def draw_masks(dataset: IncompleteDataset, keys: Sequence[MaskKey]) -> Masks:
    """Draws the masks of these ratios and seeds.

    Raises:
        ConfigError: A mask hides no cell with a known value, so nothing could be scored.
    """
    masks = {key: dataset.test_mask(key.ratio, key.seed) for key in keys}
    for key, mask in masks.items():
        if not cells_to_score(dataset, mask).any():
            n, d = mask.shape
            raise ConfigError(
                f"--ratios: a mask must hide a test cell, but ratio {key.ratio} with mask seed {key.seed} hides none "
                f"of the {n} rows and {d} columns of {dataset.config.source}; use a larger ratio"
            )
    return masks


def stored_masks(path: Path, dataset: IncompleteDataset, keys: Sequence[MaskKey]) -> Masks:
    """Reads the masks of these ratios and seeds from a file; missing ones are drawn and added to it.

    Raises:
        ConfigError: As for ``draw_masks``.
        ModelFolderError: The file is damaged or altered, or belongs to other data.
        VadtuneError: The file cannot be written.
    """
    stored = _read(path, dataset) if path.exists() else {}
    new = draw_masks(dataset, [key for key in keys if key not in stored])
    if new:
        write_atomically(path, _packed({**stored, **new}, dataset))
    return {key: stored[key] if key in stored else new[key] for key in keys}


def cells_to_score(dataset: IncompleteDataset, mask: np.ndarray) -> np.ndarray:
    """Returns the hidden cells whose values are known, bool (n_test, d)."""
    cells: np.ndarray = ~mask & ~np.isnan(dataset.test_truth)
    return cells


def _packed(masks: Masks, dataset: IncompleteDataset) -> bytes:
    """Returns the file content: a JSON header as bytes, and the bits of the masks, uint8 (masks, ceil(n·d / 8))."""
    keys = [{"ratio": key.ratio, "seed": key.seed, "sha256": mask_sha256(mask)} for key, mask in masks.items()]
    header = json.dumps({**_identity(dataset), "masks": keys})
    bits = np.packbits(np.stack([mask.ravel() for mask in masks.values()]), axis=1)
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(header.encode(), dtype=np.uint8), bits=bits)
    return buffer.getvalue()


def _read(path: Path, dataset: IncompleteDataset) -> Masks:
    again = "delete it, and the same masks are drawn again from their seeds"
    shape = dataset.test_truth.shape
    try:
        check_inside(path.parent, path)
        content = read_bounded(path, _MOST_BYTES)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > len(content):
                raise ValueError("it unpacks to more than it holds")  # masks are stored without compression
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            entries = [(MaskKey(entry["ratio"], entry["seed"]), entry["sha256"]) for entry in header.pop("masks")]
            if header != _identity(dataset):
                got = one_line(str(header), 300)
                raise ModelFolderError(f"{path}: masks of {_identity(dataset)} expected, got {got}; {again}")
            size = dataset.test_truth.size
            if file["bits"].shape != (len(entries), -(-size // 8)):
                raise ValueError(f"{len(entries)} masks of {size} cells expected, got bits of {file['bits'].shape}")
            check_memory(len(entries) * size, f"{path}: reading {len(entries)} masks", again)
            masks = np.unpackbits(file["bits"], axis=1, count=dataset.test_truth.size).astype(bool)
            masks = masks.reshape(len(entries), *shape)
    except NOT_ARRAYS as error:
        raise ModelFolderError(f"{path}: stored masks cannot be read ({error}); {again}") from error
    for (key, expected), mask in zip(entries, masks, strict=True):
        if mask_sha256(mask) != expected:
            raise ModelFolderError(f"{path}: the mask of ratio {key.ratio}, seed {key.seed} was altered; {again}")
    return {key: mask for (key, _), mask in zip(entries, masks, strict=True)}


def _identity(dataset: IncompleteDataset) -> dict[str, Any]:
    """Returns what identifies the data that masks belong to."""
    return {
        "format_version": FORMAT_VERSION,
        "source": dataset.config.source,
        "mechanism": dataset.config.missing.mechanism,
        "shape": list(dataset.test_truth.shape),
    }
