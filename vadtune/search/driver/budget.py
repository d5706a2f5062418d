"""Counts the GPU-hours that a search uses of its budget."""

from __future__ import annotations

import time
from collections.abc import Callable


class GpuMeter:
    """Adds up the GPU time that a search reserves: two trials with a quarter of a GPU use half a GPU-hour per hour.

    Args:
        hours: The budget in GPU-hours; None without one.
        clock: Returns the time in seconds.
    """

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = None if hours is None else hours * 3600
        self.seconds = 0.0
        self._clock = clock
        self._held, self._since = 0.0, clock()

    def hold(self, gpus: float) -> None:
        """Sets how many GPUs are held from now on."""
        now = self._clock()
        self.seconds += self._held * (now - self._since)
        self._held, self._since = gpus, now

    @property
    def hours(self) -> float:
        """GPU-hours used."""
        return self.seconds / 3600

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up; never without one."""
        return self.budget is not None and self.seconds >= self.budget
