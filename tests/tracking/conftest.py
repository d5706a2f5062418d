"""Ends the threads of searches that a test left as if their process had been killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vadtune.tracking.writer import Tracker


@pytest.fixture(autouse=True)
def _no_thread_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    trackers: list[Tracker] = []
    create = Tracker.__init__

    def recorded(tracker: Tracker, *args: Any) -> None:
        trackers.append(tracker)
        create(tracker, *args)

    monkeypatch.setattr(Tracker, "__init__", recorded)
    yield
    for tracker in trackers:
        tracker._given_up.set()
        tracker._wake.set()
        if tracker._thread is not None:
            tracker._thread.join(60)
