"""Shows the progress of a search: a live display on a terminal, else a log line every 30 seconds."""

from __future__ import annotations

import logging
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25
_PLAIN_SECONDS = 30.0


def duration(seconds: float) -> str:
    """Formats a duration in seconds as text: 42s, 3m 05s, 2h 10m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


class ProgressDisplay:
    """Shows the progress on stderr; use as a context manager.

    Args:
        title: Name of the search.
        metric: Name of the score that is minimised.
    """

    def __init__(self, title: str, metric: str) -> None:
        self._title, self._metric = title, metric
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

    def show(self, ended: int, total: int | None, state: str) -> None:
        """Shows how many trials ended, as a bar if their number is known, and the state of the search as a line."""
        self._shown = time.monotonic()
        if self._live is None:
            logger.info("%s: %s", self._title, state)
            return
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=total, completed=ended, width=40)
        grid.add_row(Text(self._title, style="bold"), bar)
        line = Text(f"{state}  [{self._metric}]", style="dim")
        self._live.update(Group(grid, line), refresh=True)
