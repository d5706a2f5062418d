"""State of a running search that its parts share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vadtune.artifacts.run_folder import keep_last_model
from vadtune.config import SearchFile
from vadtune.search.algorithms.logical_order import LogicalOrder
from vadtune.search.driver.progress import ProgressDisplay, duration
from vadtune.tracking.writer import Tracker


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


@dataclass
class Session:
    """State of a search that runs in this process: connections that its callback uses, and results so far.

    Attributes:
        search: The search file.
        tracker: Writes to MLflow.
        display: Shows the progress.
        total: Number of trials; None if only a budget ends the search.
        signals: The stop signals received so far.
        deadline: End of the time budget, by ``time.monotonic``; None without a budget.
        gpus: Counts the GPU-hours used.
        known: Ids of the trials that a resumed search starts with.
        pack_gpus: Number of GPUs that packs hold while the search runs.
        failures: Trial name -> reason, without diverged trials.
        ended: Trial id -> why it ended.
        ended_before: Number of trials that ended before a resume.
        started: Ids of the trials that have an MLflow run.
        scores: Trial name -> latest score, without failed trials.
        alive: Trial id -> time of its last sign of life, by ``time.monotonic``.
        hung: Trial id -> why it was ended as hanging.
        estimated: Whether the time of a trial has been estimated.
        spent: Last checkpoint of an ended trial that has more than its model -> when it ended, by ``time.time``.
        order: The order in which results count; None to take them as they arrive.
        rungs: What ASHA knows: for each rung, highest first, trial id -> score.
        full: Why a checkpoint could not be written, where the disk is full; empty where it is not.
        start: When the search was begun or resumed, by ``time.monotonic``.
        seconds_before: How long it ran before it was resumed.
    """

    search: SearchFile
    tracker: Tracker
    display: ProgressDisplay
    total: int | None
    signals: list[int]
    deadline: float | None
    gpus: GpuMeter
    known: set[str]
    pack_gpus: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    ended_before: int = 0
    started: set[str] = field(default_factory=set)
    scores: dict[str, float] = field(default_factory=dict)
    alive: dict[str, float] = field(default_factory=dict)
    hung: dict[str, str] = field(default_factory=dict)
    estimated: bool = False
    spent: dict[Path, float] = field(default_factory=dict)
    order: LogicalOrder | None = None
    rungs: list[dict[str, float]] = field(default_factory=list)
    full: str = ""
    start: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the search has run, with the time before it was resumed."""
        return self.seconds_before + time.monotonic() - self.start

    def add_time_before(self, seconds: float) -> None:
        """Counts time before a resume, which is part of the time budget."""
        self.seconds_before += seconds
        if self.deadline is not None:
            self.deadline -= seconds

    @property
    def has_all(self) -> bool:
        """Whether all trials have ended; never if only a budget ends the search."""
        return self.total is not None and len(self.ended) >= self.total

    @property
    def is_spent(self) -> bool:
        """Whether the GPU-hours or the time of the search are used up."""
        return self.gpus.is_spent or (self.deadline is not None and time.monotonic() > self.deadline)

    @property
    def best(self) -> tuple[float, str] | None:
        """The best of the latest scores and the name of its trial; None without a score."""
        return min(((score, name) for name, score in self.scores.items()), default=None)

    def share_rungs(self, rungs: list[dict[str, float]]) -> None:
        """Adds what was restored to ASHA's own records, and keeps those."""
        for recorded, restored in zip(rungs, self.rungs, strict=False):
            recorded.update(restored)
        self.rungs = rungs

    def keep_last_models(self, saved: float) -> None:
        """Deletes training states and earlier checkpoints of trials that had ended at a time, by ``time.time``.

        They take most of a search's disk space, and a resume from a snapshot of that time or later needs none of them.
        """
        for checkpoint in [path for path, ended in self.spent.items() if ended < saved]:
            keep_last_model(checkpoint)
            del self.spent[checkpoint]

    def counts(self) -> Counter[str]:
        """Returns the number of ended trials by kind: completed, stopped, diverged or error."""
        return Counter(end.partition(":")[0].partition(" ")[0] for end in self.ended.values())

    def line(self, running: int) -> str:
        """Returns the state of the search as one line of text, with an estimate of the time left."""
        counts, elapsed = self.counts(), time.monotonic() - self.start
        failed = counts["diverged"] + counts["error"]
        trials = f"{running} running, {counts['completed']} completed, {counts['stopped']} stopped, {failed} failed"
        best = f"best {self.best[0]:.4f} ({self.best[1]})" if self.best else "no score yet"
        left, now_ended = "", len(self.ended) - self.ended_before
        rest = 0.0 if self.deadline is None else self.deadline - time.monotonic()
        until = [rest] if rest > 0 else []
        if self.total is None or (now_ended and len(self.ended) < self.total):
            until += [] if self.total is None else [elapsed / now_ended * (self.total - len(self.ended))]
            left = f", about {duration(min(until))} left" if until else ""
        of = "" if self.total is None else f"/{self.total}"
        return f"{len(self.ended)}{of} trials: {trials}; {best}; {duration(elapsed)}{left}"


SESSIONS: dict[str, Session] = {}
"""Run name -> session. Tune pickles callbacks, so they hold no connections and look up their session here."""
