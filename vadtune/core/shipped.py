"""Finds the search files that are part of vadtune."""

from __future__ import annotations

from pathlib import Path

from vadtune.core.errors import ConfigError, unknown_name


def shipped_search_files() -> dict[str, Path]:
    """Returns name -> path of the shipped search files, such as ``digits``, in alphabetical order."""
    folder = Path(__file__).parents[1] / "search_spaces"  # in a checkout a link to the top-level folder
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_search_file(name: str) -> Path:
    """Returns the path of a search file: an existing path, otherwise a shipped file of this name.

    A path with a folder or an ending is returned even if it does not exist; reading it reports that.

    Raises:
        ConfigError: No file and no shipped search file has this name; the message lists the shipped names.
    """
    path, shipped = Path(name), shipped_search_files()
    if path.is_file():
        return path
    if name in shipped:
        return shipped[name]
    if path.exists() or path.suffix or path.parent != Path():
        return path
    raise ConfigError(f"FILE: {unknown_name('search file', name, shipped)}; or pass the path of a file")


def description_of(path: Path) -> str:
    """Returns the first comment line of a search file, which says what it searches; empty without one."""
    with path.open() as file:
        first = file.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
