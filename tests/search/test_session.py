"""The state of a running search as one line of text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vadtune.artifacts.run_folder import STATE_FILE, STATE_HASH
from vadtune.search.driver.session import GpuMeter, Session


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


def test_a_trial_keeps_its_last_model_alone_once_a_snapshot_knows_its_end(tmp_path: Path) -> None:
    checkpoints = [tmp_path / trial / f"checkpoint_{number:06}" for trial in ("a", "b") for number in (0, 1)]
    for folder in checkpoints:
        folder.mkdir(parents=True)
        for name in (STATE_FILE, STATE_HASH, "held_out.npz"):
            (folder / name).touch()
    running = session(spent={checkpoints[1]: 100.0, checkpoints[3]: 200.0})
    running.keep_last_models(100.0)
    assert all((folder / STATE_FILE).exists() for folder in checkpoints)
    running.keep_last_models(150.0)
    assert list(tmp_path.glob("a/*/*")) == [checkpoints[1] / "held_out.npz"]
    assert all((folder / STATE_HASH).exists() for folder in checkpoints[2:])
    assert running.spent == {checkpoints[3]: 200.0}


def test_the_time_left_is_estimated_from_trials_ended_since_the_resume() -> None:
    assert session().line(1).endswith("no score yet; 1m 40s")
    assert session(ended=ENDED).line(1).endswith(", about 2m 30s left")
    assert session(ended=ENDED, ended_before=3).line(1).endswith(", about 10m 00s left")
    assert session(ended=ENDED, deadline=time.monotonic() + 60.2).line(1).endswith(", about 1m 00s left")
    assert session(ended=ENDED, total=4).line(0).endswith("; 1m 40s")


def test_a_search_that_only_a_budget_ends_has_no_number_of_trials() -> None:
    assert session(ended=ENDED, total=None).line(1).startswith("4 trials: ")
    until = time.monotonic() + 60.2
    assert session(ended=ENDED, total=None, deadline=until).line(1).endswith(", about 1m 00s left")


def test_time_before_a_resume_is_part_of_the_budget() -> None:
    resumed = session(gpus=GpuMeter(None), deadline=time.monotonic() + 3600)
    assert not resumed.is_spent
    resumed.add_time_before(3601)
    assert resumed.is_spent
    assert resumed.seconds >= 3701
