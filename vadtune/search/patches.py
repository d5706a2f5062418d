"""Methods of Tune's controller in another form for a while: where Tune offers no hook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ray.tune.execution.tune_controller import TuneController


@contextlib.contextmanager
def replaced(name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in the place of a method of Tune's controller, until the block ends.

    Args:
        name: Of the method.
        around: Takes the method there was, the controller, and what the method is called with.
    """
    original = getattr(TuneController, name)

    def method(controller: TuneController, *arguments: Any, **named: Any) -> Any:
        return around(original, controller, *arguments, **named)

    setattr(TuneController, name, method)
    try:
        yield
    finally:
        setattr(TuneController, name, original)
