"""The lines of a spool: what each kind of entry holds, and how a line is read.

search   parameters and tags of the parent run, and names of files in the search's folder that belong to it
start    a trial begins or goes on; metrics: its values at an epoch; tags: of a trial; end: how it ended
forget   trials that are not kept were unknown to a restored search
reopen   the search goes on; finish: it ended
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Entry = dict[str, Any]
"""One line: ``op`` is the kind of entry, ``time`` when it was logged (ms); the other keys depend on the kind."""

DAMAGED = "damaged"
"""Kind of an entry that stands for a line that is none; its ``text`` is the line, ``reason`` what is wrong."""
LONGEST_LINE = 2**24
"""Bytes of a line at most; longer ones are taken for damaged ones."""
_STATUSES = ("FINISHED", "KILLED", "FAILED")
_MOST_TEXT = 2000  # characters of a damaged line that are kept


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**62  # the store keeps 64 bits


def _is_file_name(value: object) -> bool:
    """Returns whether a name can be joined to a folder without leaving it."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(
        type(number) is float or (type(number) is int and abs(number) < 2**1000) for number in value.values()
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_files(value: object) -> bool:
    return _are_texts(value) and isinstance(value, dict) and all(map(_is_file_name, value))


def _are_file_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_file_name, value))


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_status(value: object) -> bool:
    return value in _STATUSES


_FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "search": {"params": _are_texts, "tags": _are_texts, "artifacts": _are_file_names},
    "start": {"trial": _is_file_name, "name": _is_file_name, "params": _are_texts},
    "metrics": {"trial": _is_file_name, "epoch": _is_whole, "values": _are_numbers},
    "tags": {"trial": _is_file_name, "tags": _are_texts},
    "end": {"trial": _is_file_name, "status": _is_status, "end": _is_text, "checkpoint": _is_text},
    "forget": {"keep": _are_ids},
    "reopen": {},
    "finish": {"status": _is_status, "metrics": _are_numbers, "tags": _are_texts, "artifacts": _are_files},
}


def parse_entry(line: bytes) -> Entry:
    """Returns the entry that a line holds, or one of the kind ``DAMAGED``; never raises."""
    try:
        entry = json.loads(line)
        reason = _problem(entry)
    except (ValueError, RecursionError):
        reason = "is not JSON"
    if reason is None:
        return dict(entry)
    return {"op": DAMAGED, "text": line.decode(errors="replace").strip()[:_MOST_TEXT], "reason": reason}


def _problem(entry: object) -> str | None:
    """Returns what is wrong with an entry, None if nothing is."""
    if not isinstance(entry, dict):
        return "is no JSON object"
    op = entry.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        return "names no known kind of entry"
    fields = {"time": _is_whole, **_FIELDS[op]}
    wrong = [name for name, is_valid in fields.items() if name not in entry or not is_valid(entry[name])]
    return f"lacks a valid {', '.join(wrong)}" if wrong else None


def forgotten_trials(entries: Iterable[Entry]) -> set[str]:
    """Returns the trials that a restored search did not know and sampled again: they do not count."""
    seen: set[str] = set()
    forgotten: set[str] = set()
    for entry in entries:
        if "trial" in entry:
            seen.add(entry["trial"])
        elif entry["op"] == "forget":
            forgotten |= seen - set(entry["keep"])
    return forgotten
