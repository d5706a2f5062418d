"""A search in this process: what its parts share while it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vadtune.config import SearchFile
from vadtune.search.driver.budget import GpuMeter
from vadtune.search.driver.progress import ProgressDisplay
from vadtune.tracking import Tracker


@dataclass
class Session:
    """A search in this process: what its callback works with, and what it found.

    Attributes:
        search: The search file.
        tracker: Writes to MLflow.
        display: Shows the progress.
        total: Number of trials.
        signals: The signals to stop that were received.
        deadline: When the time budget ends, by ``time.monotonic``; None without a budget.
        gpus: Counts the GPU-hours used.
        known: Ids of the trials that a resumed search starts with.
        pack_gpus: How many GPUs packs hold as long as the search runs, if it packs its trials.
        failures: Trial name -> reason, without the diverged ones.
        ended: Trial id -> why it ended.
        ended_before: How many had ended before a resume.
        started: Ids of the trials whose runs are open or were.
        scores: Trial name -> its latest score; without trials that failed.
        alive: Trial id -> when it last was heard of, by ``time.monotonic``.
        hung: Trial id -> why it was given up.
    """

    search: SearchFile
    tracker: Tracker
    display: ProgressDisplay
    total: int
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

    @property
    def best(self) -> tuple[float, str] | None:
        """The best of the latest scores and the name of its trial; None without one."""
        return min(((score, name) for name, score in self.scores.items()), default=None)

    def counts(self) -> Counter[str]:
        """Returns how many trials ended how: completed, stopped, diverged or error."""
        return Counter(end.partition(":")[0].partition(" ")[0] for end in self.ended.values())


SESSIONS: dict[str, Session] = {}
"""Run name -> the session in this process. Tune pickles its callbacks, and a restored search unpickles them, so a
callback cannot hold a connection; it finds its session here."""
