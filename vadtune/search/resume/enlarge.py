"""The search file of a search that is resumed: what may have changed since it began, and how it is enlarged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vadtune.artifacts.run_folder import SEARCH_FILE
from vadtune.config import DATA_PATHS, DEFAULT_SAMPLES, SearchFile, load_recorded_search, parse_search
from vadtune.core.errors import ConfigError, SearchError
from vadtune.core.text import quoted
from vadtune.tracking.entries import Entry, forgotten_trials
from vadtune.tracking.run_log import logged_params
from vadtune.tracking.spool import read_entries

CHANGEABLE = (
    *("samples", "time_budget", "gpu_hours"),
    *("concurrency", "cpus_per_trial", "trial_timeout", "accelerator_type"),
)
"""Settings of a search that may be changed in the search file of its run folder: how long it runs, and where.

Paths of data may be changed too, see ``check_same_data``.
"""
_PATHS = {f"data.{key}" for key in DATA_PATHS}
_MOST_CHANGES = 3  # that a message names


class Enlargement(NamedTuple):
    """What ``vadtune resume`` asks for; None to keep what is recorded.

    Attributes:
        samples: Number of trials, with those there are.
        time_budget: As ``search.time_budget``, with the time used so far.
    """

    samples: int | None = None
    time_budget: str | None = None

    def __bool__(self) -> bool:
        return self != (None, None)


NOTHING = Enlargement()


class _Begun(NamedTuple):
    """What the log of a search says: the parameters it began with (None: an early version), and its trials."""

    params: dict[str, str] | None
    trials: set[str]


def resumed_search(folder: Path) -> SearchFile:
    """Returns the search of a run folder, with the number of trials that it began with unless its file names one.

    Raises:
        ConfigError: The search file has mistakes.
        SearchError: It was changed since the search began in what must stay; the message names keys and values.
    """
    search, begun = load_recorded_search(folder / SEARCH_FILE), _begun(folder)
    if begun.params is not None:
        _check_unchanged(folder / SEARCH_FILE, search, begun.params)
    if search.search.samples is not None or search.search.sampler == "grid":
        return search
    # Earlier versions took 64 trials also with a budget.
    samples = str(DEFAULT_SAMPLES) if begun.params is None else begun.params.get("search.samples", "None")
    return search if samples == "None" else _with(search, samples=int(samples))


def check_same_data(folder: Path, search: SearchFile, mask_hashes: Mapping[str, str]) -> None:
    """Checks that data which has another path than when a search began has the same masks.

    Raises:
        SearchError: It has others, so that it has other rows, columns or missing cells.
    """
    first = next((entry for entry in _entries(folder) if entry["op"] == "search"), None)
    if first is None or "vadtune.masks" not in first["tags"]:
        return
    params, now = first["params"], logged_params(search)
    moved = sorted(key for key in _PATHS if params.get(key) != now.get(key))
    if moved and json.loads(first["tags"]["vadtune.masks"]) != mask_hashes:
        raise SearchError(
            f"{moved[0]}: the data must be that of the search, at another place, got other rows, columns or missing "
            f"cells at {now.get(moved[0])}; name the file that was {params.get(moved[0])}"
        )


def enlarged_search(folder: Path, search: SearchFile, wanted: Enlargement) -> SearchFile:
    """Returns a search, as ``resumed_search`` does, with more trials or time.

    Raises:
        ConfigError: The search cannot be enlarged like this.
    """
    before = search.search
    changes: dict[str, Any] = {}
    if wanted.samples is not None:
        if before.sampler == "grid":
            raise ConfigError(
                f"--samples: a grid cannot be enlarged, got {wanted.samples}; leave it out, or start another search"
            )
        if before.samples is not None and wanted.samples < before.samples:
            raise ConfigError(
                f"--samples: counts the trials there are too, {before.samples} so far, got {wanted.samples}; pass more"
            )
        changes["samples"] = wanted.samples
    if wanted.time_budget is not None:
        changes["time_budget"] = wanted.time_budget
        names_samples = "samples" in (load_recorded_search(folder / SEARCH_FILE).tree.get("search") or {})
        if wanted.samples is None and before.sampler != "grid" and not names_samples:
            changes["samples"] = None  # as in a search file with a budget alone
    larger = _with(search, **changes)
    new, old = larger.search.time_budget_s, before.time_budget_s
    if wanted.time_budget is not None and new is not None and old is not None and new < old:
        raise ConfigError(
            f"--time-budget: counts the time used so far too, {before.time_budget} as begun, got {wanted.time_budget}; "
            "pass more"
        )
    if wanted.samples is None and has_all_trials(folder, larger):
        raise ConfigError(
            f"--time-budget: {folder.name} has all its {larger.search.samples} trials, got {wanted.time_budget}; pass "
            "--samples too"
        )
    return larger


def has_all_trials(folder: Path, search: SearchFile) -> bool:
    """Returns whether a search has the trials that it is to have; never if only a budget ends it."""
    limit = search.search.samples
    return limit is not None and len(_begun(folder).trials) >= limit


def _entries(folder: Path) -> list[Entry]:
    try:
        return list(read_entries(folder))
    except FileNotFoundError:
        return []


def _begun(folder: Path) -> _Begun:
    entries = _entries(folder)
    params = next((entry["params"] for entry in entries if entry["op"] == "search"), None)
    started = {entry["trial"] for entry in entries if entry["op"] == "start"}
    return _Begun(params, started - forgotten_trials(entries))


def _with(search: SearchFile, **changes: Any) -> SearchFile:
    section = {**(search.tree.get("search") or {}), **changes}
    kept = {key: value for key, value in section.items() if value is not None or key not in changes}
    return parse_search({**search.tree, "search": kept})


def _check_unchanged(path: Path, search: SearchFile, begun: dict[str, str]) -> None:
    """Raises SearchError unless a search file says what the search began with, except for ``CHANGEABLE`` settings."""
    now = logged_params(search)
    ignored = {f"search.{key}" for key in CHANGEABLE} | _PATHS
    named = {*search.values, *search.domains, *(f"search.{key}" for key in search.tree.get("search") or {})}
    changes = []
    for key in sorted({*now, *begun} - ignored):
        # Parameters that another version has in addition, and those that do not exist with others, may be absent.
        if (key not in begun and key not in named) or (key not in now and not key.startswith("data.")):
            continue
        if begun.get(key) != now.get(key):
            changes.append(f"{key} {_shown(begun.get(key))}, got {_shown(now.get(key))}")
    if changes:
        more = f" and {len(changes) - _MOST_CHANGES} more" if len(changes) > _MOST_CHANGES else ""
        raise SearchError(
            f"{path}: a search goes on as it began: {'; '.join(changes[:_MOST_CHANGES])}{more}; put it back, or start "
            f"another search (only paths of data and {', '.join(CHANGEABLE)} of search may change)"
        )


def _shown(value: str | None) -> str:
    return "nothing" if value is None else quoted(value, 80)
