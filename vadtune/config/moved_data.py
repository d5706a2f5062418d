"""Finds data files of a recorded configuration that were moved together with it.

Configurations of run folders and models hold whole paths, since they are read from anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

DATA_PATHS = ("path", "data_dir", "missing.path", "train_missing.path")
"""Keys of the section ``data`` that name files, prefixes of files, or folders."""
_FILES = {*DATA_PATHS} - {"data_dir"}  # a folder of downloads is made where it is missing
_MOST_PARTS = 20  # of a path, that are looked for


def with_moved_data(tree: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Returns a configuration with the paths that its data files have now.

    A path that does not exist is replaced by one that ends like it, as far as possible, in a folder above the
    configuration; a warning names it. Where there is none it stays.

    Args:
        tree: The configuration, as nested mappings.
        file: Its file.
    """
    data = tree.get("data")
    return {**tree, "data": _moved(data, file, "")} if isinstance(data, dict) else dict(tree)


def _moved(section: Mapping[str, Any], file: Path, prefix: str) -> dict[str, Any]:
    changed = dict(section)
    for key, value in section.items():
        if isinstance(value, dict):
            changed[key] = _moved(value, file, f"{prefix}{key}.")
        elif f"{prefix}{key}" in _FILES and isinstance(value, str):
            changed[key] = _find(value, file.absolute().parent)
    return changed


def _find(recorded: str, folder: Path) -> str:
    path = Path(recorded)
    if not path.is_absolute() or _exists(path):
        return recorded
    for start in range(max(1, len(path.parts) - _MOST_PARTS), len(path.parts)):
        for above in (folder, *folder.parents):
            if _exists(found := above.joinpath(*path.parts[start:])):
                _warn(path, found)
                return str(found)
    return recorded


@cache  # once, although each model of an ensemble has a configuration
def _warn(recorded: Path, found: Path) -> None:
    logger.warning("%s is not there, %s is read instead", recorded, found)


def _exists(path: Path) -> bool:
    """Returns whether a file exists, or ``PREFIX.h5`` of a prefix."""
    try:
        return path.is_file() or path.with_name(f"{path.name}.h5").is_file()
    except (OSError, ValueError):  # no path of this system
        return False
