"""The lines of a spool that the store rejected, in a file next to it (``mlflow.rejected.jsonl``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from vadtune.core.errors import SearchError
from vadtune.core.files import write_atomically
from vadtune.core.reading import bounded_lines
from vadtune.tracking.entries import DAMAGED, LONGEST_LINE, Entry, parse_entry

REJECTED_FILE = "mlflow.rejected.jsonl"
_MOST_REASONS = 2  # of those that a message names


def rejected_lines(folder: Path) -> int:
    """Returns the number of lines in the folder of a search that its store has rejected."""
    return len(_read(folder / REJECTED_FILE))


class RejectedLines:
    """Rejected lines and the reason of each; each line is kept once.

    Args:
        folder: The search's folder.
        empty: Whether to begin without the lines of the file, which stays as it is until ``replace``.
    """

    def __init__(self, folder: Path, *, empty: bool = False) -> None:
        self.path = folder / REJECTED_FILE
        self._saved: dict[str, str] = {} if empty else _read(self.path)
        self._lines, self._kept = dict(self._saved), dict(self._saved)
        self._is_new = empty

    def add(self, entry: Entry, reason: str) -> None:
        """Sets a line aside."""
        self._lines[json.dumps(entry)] = reason

    def remove(self, trials: Collection[str | None]) -> None:
        """Takes the lines of trials out, and those of the search itself where ``None`` is one of them."""
        self._lines = {line: why for line, why in self._lines.items() if _trial_of(line) not in trials}

    def trials(self) -> set[str | None]:
        """Returns the trials with rejected lines, and None if lines of the search itself were rejected."""
        return {trial for trial in map(_trial_of, self._lines) if trial != DAMAGED}

    def keep(self) -> None:
        """Makes what was added or removed final."""
        self._kept = dict(self._lines)

    def roll_back(self) -> None:
        """Takes back what was added or removed since ``keep``."""
        self._lines = dict(self._kept)

    def save(self) -> None:
        """Makes the changes final and writes the file if there are any; there is none without rejected lines."""
        self.keep()
        if self._lines == self._saved or self._is_new:
            return
        lines = [
            json.dumps({"reason": reason, "line": json.loads(line)}) + "\n" for line, reason in self._lines.items()
        ]
        if lines:
            write_atomically(self.path, "".join(lines).encode())
        else:
            self.path.unlink(missing_ok=True)
        self._saved = dict(self._lines)

    def replace(self) -> None:
        """Replaces the lines of the file, of which none were read, by those of this object."""
        self._is_new, self._saved = False, _read(self.path)
        self.save()

    def __len__(self) -> int:
        return len(self._lines)

    def summary(self) -> str:
        """Returns how many lines the store rejected, where they are and why, on one line."""
        counts = Counter(self._lines.values())
        reasons = [f"{count} because {reason}" for reason, count in counts.most_common(_MOST_REASONS)]
        others = "; others for other reasons" if len(counts) > _MOST_REASONS else ""
        number = "1 line was" if len(self) == 1 else f"{len(self)} lines were"
        return f"{number} rejected by the store and set aside in {self.path}: {'; '.join(reasons)}{others}"


def _trial_of(line: str) -> str | None:
    """Returns the trial of a line; None for a line of the search, ``DAMAGED`` for a damaged one."""
    entry = json.loads(line)
    if entry.get("op") == DAMAGED:
        return DAMAGED
    trial = entry.get("trial")
    return trial if isinstance(trial, str) else None


def _read(path: Path) -> dict[str, str]:
    """Reads the file of rejected lines; what cannot be read in it is taken for a damaged line.

    Raises:
        SearchError: It is no regular file, or this user may not read it.
    """
    found: dict[str, str] = {}
    try:
        lines = list(bounded_lines(path, LONGEST_LINE))
    except FileNotFoundError:
        return found
    except OSError as error:
        raise SearchError(f"{path}: cannot be read ({error.strerror}); put the file of the search back") from error
    for line in lines:
        try:
            kept = json.loads(line)
            entry, reason = kept["line"], str(kept["reason"])
            if not isinstance(entry, dict) or not isinstance(entry.get("op"), str):
                raise ValueError("not an entry")
        except (ValueError, KeyError, TypeError, RecursionError):
            entry, reason = parse_entry(line), "the line is damaged"
        found[json.dumps(entry)] = reason
    return found
