"""The state of a running search as one line of text."""

from __future__ import annotations

import time
from typing import Any

from vadtune.search.driver.session import Session


def session(**values: Any) -> Session:
    unused: Any = None
    found = Session(unused, unused, unused, 10, [], None, unused, set())
    found.start = time.monotonic() - 100
    for name, value in values.items():
        setattr(found, name, value)
    return found


ENDED = {
    "a": "completed",
    "b": "stopped by asha at epoch 3",
    "c": "diverged: loss is nan",
    "d": "error: its worker died",
}


def test_the_line_counts_trials_by_how_they_ended() -> None:
    line = session(ended=ENDED, scores={"trial-0001": 0.5, "trial-0002": 0.25}).line(2)
    assert line.startswith("4/10 trials: 2 running, 1 completed, 1 stopped, 2 failed; best 0.2500 (trial-0002); 1m 40s")


def test_the_time_left_is_estimated_from_trials_ended_since_the_resume() -> None:
    assert session().line(1).endswith("no score yet; 1m 40s")
    assert session(ended=ENDED).line(1).endswith(", about 2m 30s left")
    assert session(ended=ENDED, ended_before=3).line(1).endswith(", about 10m 00s left")
    assert session(ended=ENDED, deadline=time.monotonic() + 60.2).line(1).endswith(", about 1m 00s left")
    assert session(ended=ENDED, total=4).line(0).endswith("; 1m 40s")
