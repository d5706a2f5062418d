"""Functions of Ray or Tune that are replaced while a search runs, and what becomes of a search if Ray has changed.

Which ones there are is said in ``ray_compat.py``.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ray

from vadtune.core.errors import SearchError

logger = logging.getLogger(__name__)

VERSIONS = ">=2.58,<2.61"
"""The Ray versions that the adaptations were written for and tested with: the range in pyproject.toml."""
_CALLED: set[str] = set()  # targets of adaptations that are applied, once Ray has called the replacement


@dataclass(frozen=True)
class Adaptation:
    """A function of Ray or Tune that is replaced while a search runs.

    Attributes:
        target: The function, as ``module:Class.function`` or ``module:function``.
        parameters: The parameters it must have, without the first.
        reason: What the search does without it, for the warning or the error.
        attributes: Names that the class must have or assign in its constructor.
        uses: Other functions that must exist, each with the parameters it must have.
        protective: Whether a search must not run without it.
    """

    target: str
    parameters: tuple[str, ...]
    reason: str
    attributes: tuple[str, ...] = ()
    uses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    protective: bool = False

    def problem(self) -> str:
        """Returns what this version of Ray lacks or has in another form; empty if all is as needed."""
        for path, expected in {self.target: self.parameters, **self.uses}.items():
            try:
                function = pkgutil.resolve_name(path)
            except (ImportError, AttributeError):
                return f"{path} does not exist"
            found = tuple(inspect.signature(function).parameters)[1:]
            if found != expected:
                return f"{path} must take {expected}, got {found}"
        if not self.attributes:
            return ""
        owner = pkgutil.resolve_name(self.target.rpartition(".")[0])
        assigned = owner.__init__.__code__.co_names
        missing = [name for name in self.attributes if not hasattr(owner, name) and name not in assigned]
        return f"{owner.__name__} has no {', '.join(missing)}" if missing else ""

    @contextlib.contextmanager
    def applied(self, wrapper: Callable[..., Any]) -> Iterator[None]:
        """Replaces the function until the block ends.

        Args:
            wrapper: Called as ``wrapper(original, *args, **kwargs)``; for methods ``args[0]`` is self.

        Raises:
            SearchError: It is protective, and Ray has changed.
        """
        if not self.is_usable():
            yield
            return
        path, _, name = self.target.rpartition(".")
        owner, original = pkgutil.resolve_name(path), pkgutil.resolve_name(self.target)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            _CALLED.add(self.target)
            return wrapper(original, *args, **kwargs)

        setattr(owner, name, replacement)
        try:
            yield
        finally:
            setattr(owner, name, original)
            _CALLED.discard(self.target)

    def was_called(self) -> bool:
        """Returns whether Ray has called the replacement since it was applied."""
        return self.target in _CALLED

    def is_usable(self) -> bool:
        """Returns whether Ray has what it needs; if not, warns once, or raises SearchError where it is protective."""
        if not (problem := self.problem()):
            return True
        message = f"Ray {ray.__version__}: {problem} (expected: Ray {VERSIONS}); without it {self.reason}"
        if self.protective:
            raise SearchError(f"{message}; install 'ray{VERSIONS}'")
        warn_once(message)
        return False


def call_optional(path: str, without: str, *args: Any) -> Any:
    """Calls a function of Ray; returns None, with one warning, if it does not exist."""
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        warn_once(f"Ray {ray.__version__}: {path} does not exist; without it {without}")
        return None
    return function(*args)


@cache
def warn_once(message: str) -> None:
    """Logs a warning, unless the same one was logged before."""
    logger.warning("%s", message)
