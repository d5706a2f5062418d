"""How many GPU-hours a search has used of those it may use."""

from __future__ import annotations

import time
from collections.abc import Callable


class GpuMeter:
    """Adds up the time for which a search holds GPUs; two trials with a quarter each use half a GPU-hour in an hour.

    Args:
        hours: The budget in GPU-hours; None without one.
        clock: Gives seconds; by default the time since some moment.
    """

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = None if hours is None else hours * 3600
        self.seconds = 0.0
        self._clock = clock
        self._held, self._since = 0.0, clock()

    def hold(self, gpus: float) -> None:
        """Tells how many GPUs are held from now on; until now it was as many as told before."""
        now = self._clock()
        self.seconds += self._held * (now - self._since)
        self._held, self._since = gpus, now

    @property
    def hours(self) -> float:
        """GPU-hours used."""
        return self.seconds / 3600

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        return self.budget is not None and self.seconds >= self.budget
