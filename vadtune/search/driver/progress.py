"""Shows the progress of a search: a live display on a terminal, else a log line every 30 seconds."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25
_PLAIN_SECONDS = 30.0


class Progress(NamedTuple):
    """The state of a search: counts of trials, the best score with its trial, seconds left of the time budget.

    ``ended_before`` counts the trials that ended before a resume; the estimate of the time left excludes them.
    """

    total: int
    ended_before: int
    running: int
    completed: int
    stopped: int
    failed: int
    best: tuple[float, str] | None
    budget_left: float | None

    @property
    def ended(self) -> int:
        """Number of trials that will not run again."""
        return self.completed + self.stopped + self.failed

    def line(self, elapsed: float) -> str:
        """Returns the state as one line of text."""
        best = f"best {self.best[0]:.4f} ({self.best[1]})" if self.best else "no score yet"
        counts = f"{self.running} running, {self.completed} completed, {self.stopped} stopped, {self.failed} failed"
        left, now_ended = "", self.ended - self.ended_before
        if now_ended and self.ended < self.total:
            estimate = elapsed / now_ended * (self.total - self.ended)
            left = f", about {duration(min(estimate, self.budget_left or estimate))} left"
        return f"{self.ended}/{self.total} trials: {counts}; {best}; {duration(elapsed)}{left}"


def duration(seconds: float) -> str:
    """Formats a duration in seconds as text: 42s, 3m 05s, 2h 10m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


class ProgressDisplay:
    """Shows Progress on stderr; use as a context manager.

    Args:
        title: Name of the search.
        metric: Name of the score that is minimised.
    """

    def __init__(self, title: str, metric: str) -> None:
        self._title, self._metric = title, metric
        self._start = time.monotonic()
        self._shown = 0.0
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def due(self) -> bool:
        """Returns whether the display should be refreshed."""
        return time.monotonic() - self._shown >= (_REFRESH_SECONDS if self._live else _PLAIN_SECONDS)

    def show(self, progress: Progress) -> None:
        """Shows the progress now."""
        self._shown = time.monotonic()
        elapsed = self._shown - self._start
        if self._live is None:
            logger.info("%s: %s", self._title, progress.line(elapsed))
            return
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=progress.total, completed=progress.ended, width=40)
        grid.add_row(Text(self._title, style="bold"), bar)
        line = Text(f"{progress.line(elapsed)}  [{self._metric}]", style="dim")
        self._live.update(Group(grid, line), refresh=True)
