"""What Tune's callbacks log, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vadtune.search.driver.callbacks import SearchCallback
from vadtune.search.driver.session import SESSIONS


def test_a_trial_that_is_retried_before_it_started_is_started_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a resume, when the worker of a trial dies that the killed driver had not started."""
    logged: list[str] = []
    tracker = SimpleNamespace(
        start_trial=lambda *args: logged.append("start"), tag_trial=lambda *args: logged.append("tags")
    )
    search = SimpleNamespace(trial_config=lambda config: SimpleNamespace(flat=dict))
    session: Any = SimpleNamespace(tracker=tracker, search=search, started=set(), hung={"a": "error: it hung"})
    monkeypatch.setitem(SESSIONS, "run", session)
    monkeypatch.setattr("vadtune.search.driver.callbacks.check_effect", lambda name: None)
    trial: Any = SimpleNamespace(trial_id="a", num_failures=1, experiment_tag="7_x=1", config={})
    for _ in range(2):
        SearchCallback("run").on_trial_recover(1, [trial], trial)
    assert logged == ["start", "tags", "tags"]
