"""GPU-hours: how they are counted, and a search that ends when they are used up."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.search.cluster import cluster
from tests.search.test_chaos import ended, finished_trials, started, wait_for
from tests.search.test_interruption import command, environment, trials_of
from tests.search.test_run import tiny
from vadtune.search.driver.session import GpuMeter
from vadtune.tracking.queries import resolve_search
from vadtune.tracking.store import connect


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_gpu_hours_are_gpus_times_hours() -> None:
    clock = Clock()
    meter = GpuMeter(2, clock)
    for gpus, hours in [(0.25, 1), (0.5, 1), (0, 5), (1, 1)]:
        meter.hold(gpus)
        assert not meter.is_spent
        clock.now += 3600 * hours
    meter.hold(1)
    assert meter.hours == pytest.approx(1.75)
    clock.now += 900
    meter.hold(0)
    assert meter.hours == pytest.approx(2)
    assert meter.is_spent


def test_without_a_budget_gpu_hours_are_counted_and_end_nothing() -> None:
    clock = Clock()
    meter = GpuMeter(None, clock)
    meter.hold(8)
    clock.now += 1e6
    meter.hold(8)
    assert meter.hours == pytest.approx(8e6 / 3600)
    assert not meter.is_spent


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_search_ends_with_its_gpu_hours_those_before_a_resume_included(tmp_path: Path) -> None:
    """Ray takes a node's word for its GPUs; trials use them as far as torch sees them."""
    budget = 20 / 3600
    tree = tiny(samples=500, scheduler="none", report=100, cpus_per_trial=1, gpus_per_trial=0.5, pack=1)
    tree["search"]["gpu_hours"] = budget
    tree["train"]["epochs"] = 1_000_000  # so that the budget ends in the middle of a trial
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    with cluster("--num-gpus=1", cpus=2) as here:
        arguments = ("--address", here.address)
        search = started(tmp_path, "search", "tiny.yaml", *arguments, env=here.env)
        wait_for(lambda: finished_trials(tmp_path) >= 2, search, tmp_path / "log.txt")
        search.send_signal(signal.SIGINT)
        assert search.wait(60) == 130
        (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
        before = gpu_hours(tmp_path)
        assert 0 < before < budget
        ended(started(tmp_path, "resume", run, *arguments, env=here.env), tmp_path)
    assert 0.999 * budget <= gpu_hours(tmp_path) < 1.5 * budget
    trials = trials_of(tmp_path)
    assert 2 <= len(trials) < 500
    assert {trial.status for trial in trials} == {"KILLED"}
    assert {trial.end.partition(" at epoch")[0] for trial in trials} == {"stopped by GPU-hours"}
    exported = subprocess.run(
        command("export", "tiny", "--ensemble", "best", "--out", "best"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert exported.returncode == 0, exported.stderr
    assert len(list(tmp_path.glob("best/01-*/weights.safetensors"))) == 1


def gpu_hours(folder: Path) -> float:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return float(json.loads(resolve_search(connect(uri), uri, "tiny").tags["vadtune.summary"])["gpu_hours"])
