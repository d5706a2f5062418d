"""The order in which the results of trials count, so that a search repeats.

Which of two trials that run at once reports first depends on the machine. Here results count in the order of a clock
that depends on their configurations alone: a trial's next report is due when the arithmetic up to it would be done. A
result that arrives early waits until it is due, and a trial is proposed once another one has ended by that clock. So
what sampler and scheduler know when they decide does not depend on the time that anything takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds; processes start within it
ENDED = ("TERMINATED", "ERROR")
"""The states of a Tune trial that has ended."""


class Trial(Protocol):
    """What is needed of a Tune trial."""

    trial_id: str
    config: dict[str, Any]
    status: str

    @property
    def last_result(self) -> dict[str, Any]:
        """Its last result that counted; ``done`` if it ends with that."""


@dataclass
class _Open:
    """A trial that has begun and not ended, by the clock.

    Attributes:
        trial: The trial.
        began: When, by the clock.
        reports: Its reports: epoch -> time since it began, ascending.
        epoch: The epoch of its last report that counted.
    """

    trial: Trial
    began: float
    reports: dict[int, float]
    epoch: int = 0

    @property
    def due(self) -> float:
        """When its next report is due, by the clock."""
        return self.began + next((at for epoch, at in self.reports.items() if epoch > self.epoch), 0.0)


class LogicalOrder:
    """Holds results back until they are due.

    Args:
        concurrency: Number of trials that run at once.
        clock: Returns the reports of a trial, from its sample: epoch -> time since it began, ascending.
    """

    def __init__(self, concurrency: int, clock: Callable[[Mapping[str, Any]], dict[int, float]]) -> None:
        self._concurrency, self._clock = concurrency, clock
        self._now = 0.0
        self._seen = 0  # trials that were looked at
        self._open: dict[str, _Open] = {}  # in the order of their proposal
        self._held: dict[str, tuple[int | None, Callable[[], None]]] = {}  # epoch (None: a failure) and what to do
        self._stuck_since: float | None = None  # by ``time.monotonic``
        self._gave_up = False  # results count as they arrive
        self._ending: Trial | None = None  # counted as ended, while its last checkpoint is written
        self._restored: dict[str, Any] = {}

    @property
    def ending(self) -> str | None:
        """The id of the trial that counts as ended while its last checkpoint is being written; None without one."""
        return None if self._ending is None or self._ending.status in ENDED else self._ending.trial_id

    def state(self) -> dict[str, Any]:
        """Returns what a resume needs, as JSON values; a trial that is ending will report and end again."""
        return {"now": self._now, "open": {key: [one.began, one.epoch] for key, one in self._open.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from what ``state`` returned, before the first trial is proposed."""
        self._restored = dict(state)

    def is_holding(self, trial_id: str) -> bool:
        """Returns whether a trial has reported and waits until that counts."""
        return trial_id in self._held

    def arrived(self, trial: Trial, epoch: int | None, count: Callable[[], None]) -> None:
        """Takes a result that has arrived.

        Args:
            trial: The trial that reports.
            epoch: Its epoch; None if the trial has failed for good.
            count: Gives the result to sampler and scheduler; called at once for an epoch that has counted before, which
                a trial reports again when its worker has died since.
        """
        one = self._open.get(trial.trial_id)
        if trial is self._ending or (one and epoch is not None and epoch <= one.epoch):
            count()
        else:
            self._held[trial.trial_id] = epoch, count

    def proceed(self, trials: Sequence[Trial], propose: Callable[[int], None]) -> None:
        """Lets all results count that are due, and has trials proposed in between; call it after each arrival.

        Args:
            trials: All trials, in the order of their proposal.
            propose: Has the sampler propose so many trials, or fewer at the end of a search.
        """
        while self._ending is None or self._ending.status in ENDED:
            self._ending = None
            self._begin(trials)
            if (free := self._concurrency - len(self._open)) > 0:
                propose(free)
                self._begin(trials)
            first = min(self._open.values(), key=lambda one: one.due, default=None)
            if first is not None and (self._gave_up or self._is_stuck(first)):
                first = next(iter(self._waiting()), None)
            if first is None or first.trial.trial_id not in self._held:
                return
            self._count(first)

    def count_all(self) -> bool:
        """Lets all results count that are held back, for a search that is about to end; returns whether any were."""
        waiting = self._waiting()
        for one in waiting:
            self._count(one)
        return bool(waiting)

    def _waiting(self) -> list[_Open]:
        """Returns the trials whose results are held back, by when they are due."""
        return sorted((one for key, one in self._open.items() if key in self._held), key=lambda one: one.due)

    def _is_stuck(self, first: _Open) -> bool:
        """Returns whether the trial that is due cannot start, because those that wait for it take all there is."""
        others = [key for key in self._open if key != first.trial.trial_id]
        if first.trial.status != "PENDING" or not others or not all(key in self._held for key in others):
            self._stuck_since = None
            return False
        if self._stuck_since is None:
            self._stuck_since = time.monotonic()
        if time.monotonic() - self._stuck_since > _PATIENCE:
            self._gave_up = True
            logger.warning(
                "fewer trials run at once than search.concurrency (%d), so that results count as they arrive from now "
                "on, and the search will not repeat; lower search.concurrency next time",
                self._concurrency,
            )
        return self._gave_up

    def _begin(self, trials: Sequence[Trial]) -> None:
        """Lets the trials begin that were proposed since the last call, and forgets those that were ended."""
        for one in [one for one in self._open.values() if one.trial.status in ENDED]:
            if one.trial.trial_id not in self._held:
                del self._open[one.trial.trial_id]
        known = self._restored.pop("open", {})
        self._now = self._restored.pop("now", self._now)
        for trial in trials[self._seen :]:
            if trial.status not in ENDED:
                began, epoch = known.get(trial.trial_id, (self._now, 0))
                self._open[trial.trial_id] = _Open(trial, began, self._clock(trial.config), epoch)
        self._seen = len(trials)

    def _count(self, one: _Open) -> None:
        epoch, count = self._held.pop(one.trial.trial_id)
        self._now = one.due
        count()
        if epoch is not None:
            one.epoch = epoch
        if one.trial.status in ENDED or (epoch is not None and one.trial.last_result.get("done")):
            del self._open[one.trial.trial_id]
            self._ending = one.trial
