"""Functions of Ray and Tune in another form for a while: where they offer no hook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in the place of one of a class or a module, until the block ends.

    Args:
        owner: The class or module.
        name: Of its function.
        around: Takes the function there was and what that is called with, of a method its object first.
    """
    original = getattr(owner, name)

    def function(*arguments: Any, **named: Any) -> Any:
        return around(original, *arguments, **named)

    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)
