"""Errors a user can do something about: the rule broken, the value received, the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class VadtuneError(Exception):
    """Base of every error vadtune raises on purpose. The command line prints it on one line and exits with 2."""


class ConfigError(VadtuneError):
    """A search file, a trial configuration or an argument breaks a rule.

    Args:
        problems: One message per broken rule; all of a file's problems are gathered before raising.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(VadtuneError):
    """A dataset cannot be read or breaks a rule of its kind."""


class ModelFolderError(VadtuneError):
    """A model folder is incomplete, altered or not a model folder."""


class TrackingError(VadtuneError):
    """The MLflow store cannot be reached, or does not hold what was asked for."""


class SearchError(VadtuneError):
    """A search cannot be started or resumed."""


class CheckpointError(VadtuneError):
    """A checkpoint could not be written, as on a full disk; the trial is tried again from the one before."""


class TrialDiverged(VadtuneError):  # noqa: N818 - it names what happened to the trial, as Optuna's TrialPruned does
    """A configuration's loss became NaN or infinite; only this trial fails."""


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Returns the message for an unknown name: the nearest valid one, and all valid ones."""
    names = sorted(valid)
    if not names:
        return f"unknown {kind} '{name}': there is none yet"
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}valid: {', '.join(names)}"
