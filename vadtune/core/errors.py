"""Errors that a user can act on. Messages state the rule broken, the value received and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from vadtune.core.text import quoted

_MOST_PROBLEMS = 50
_LONGEST_NAME = 100  # characters that are compared and shown
_MOST_COMPARED, _MOST_NAMED = 2000, 100  # of the valid names


class VadtuneError(Exception):
    """Base of every error vadtune raises on purpose. The command line prints it on one line and exits with 2."""


class ConfigError(VadtuneError):
    """A search file, a trial configuration or an argument breaks a rule.

    Args:
        problems: One message per broken rule; all problems of a file are collected before raising, and the
            first 49 of more than 50 are kept.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        listed = [problems] if isinstance(problems, str) else list(problems)
        if len(listed) > _MOST_PROBLEMS:
            listed[_MOST_PROBLEMS - 1 :] = [f"and {len(listed) - _MOST_PROBLEMS + 1} more problems"]
        self.problems: list[str] = listed
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(VadtuneError):
    """A dataset cannot be read, or breaks a rule."""


class OutputError(VadtuneError):
    """A file or folder cannot be written."""


class ModelFolderError(VadtuneError):
    """A model folder is incomplete, altered or not a model folder."""


class TrackingError(VadtuneError):
    """The MLflow store cannot be reached, or lacks what was asked for."""


class SearchError(VadtuneError):
    """A search cannot be started or resumed."""


class CheckpointError(VadtuneError):
    """A checkpoint could not be written (a full disk, say); the trial is retried from the previous one."""


class TrialDiverged(VadtuneError):  # noqa: N818 - it names what happened to the trial, as Optuna's TrialPruned does
    """The loss of a configuration became NaN or infinite; only this trial fails."""


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Returns the message for an unknown name, with the closest valid name and all valid names."""
    names = sorted(valid)
    if not names:
        return f"unknown {kind} '{name}': there is none yet"
    near = difflib.get_close_matches(str(name)[:_LONGEST_NAME], names[:_MOST_COMPARED], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"unknown {kind} {quoted(name, _LONGEST_NAME)}: {hint}valid: {', '.join(names[:_MOST_NAMED])}{more}"
