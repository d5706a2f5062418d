"""A search that is killed or interrupted, and resumed: in processes of its own, ended by their ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.search.test_run import tiny
from vadtune.tracking.queries import Trial, list_trials, resolve_search
from vadtune.tracking.store import connect

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SAMPLES = 8


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vadtune", *arguments]


def environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "TUNE_"))}
    return {**own, "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree = tiny(samples=SAMPLES, scheduler="none", cpus_per_trial=1, pack=1)
    tree["train"]["epochs"] = 1500  # about a second a trial, so that there is a middle to interrupt
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def trials_of(folder: Path) -> list[Trial]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = connect(uri)
    return list_trials(client, resolve_search(client, uri, "tiny"))


def interrupt(folder: Path, number: signal.Signals, ready: Callable[[], bool]) -> subprocess.Popen[str]:
    """Starts a search and sends it a signal once it is in the middle of its trials."""
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command("search", "tiny.yaml"),
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
        )
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "the search did not get under way"
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(60)
    return process


def finished_trials(folder: Path) -> int:
    """Counts trials with a checkpoint on disk, without touching the store."""
    return len({path.parent for path in folder.glob("runs/*/tune/*/checkpoint_*")})


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.chaos)]
)
def test_a_resumed_search_finishes_every_sample_once(folder: Path, number: signal.Signals) -> None:
    process = interrupt(folder, number, lambda: finished_trials(folder) >= 3)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    (run,) = [path.name for path in (folder / "runs").iterdir()]
    before = {trial.name: trial for trial in trials_of(folder) if trial.status == "FINISHED"}
    if number != signal.SIGKILL:
        assert f"vadtune resume {run}" in (folder / "log.txt").read_text()
        assert all(trial.status != "RUNNING" for trial in trials_of(folder))

    done = subprocess.run(
        command("resume", run), cwd=folder, env=environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    after = trials_of(folder)
    assert [trial.name for trial in after] == [f"trial-{index:04d}" for index in range(1, SAMPLES + 1)]
    assert {(trial.status, trial.end) for trial in after} == {("FINISHED", "completed")}
    assert len({trial.trial_id for trial in after}) == SAMPLES
    kept = {trial.name: trial for trial in after}
    for name, trial in before.items():  # what was finished was not done again
        assert kept[name].run_id == trial.run_id
        assert kept[name].metrics == trial.metrics
    assert len({repr(sorted(trial.params.items())) for trial in after}) == SAMPLES, "a configuration was tried twice"
    assert "trial-0001" in done.stdout


def told(folder: Path) -> list[tuple[object, ...]]:
    """Returns what a search found, without times: configurations, ends and metric values of all trials."""
    return [
        (trial.name, trial.end, sorted(trial.params.items()), {
            name: value for name, value in trial.metrics.items() if not name.endswith("seconds")
        })
        for trial in trials_of(folder)
    ]  # fmt: skip


@pytest.mark.chaos
def test_a_search_repeats_whatever_ends_first_and_also_killed_and_resumed(folder: Path, tmp_path: Path) -> None:
    tree = tiny(samples=26, cpus_per_trial=1, grace_epochs=20, concurrency=3)
    tree["train"]["epochs"] = 540
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    for place in (undisturbed, folder):
        (place / "tiny.yaml").write_text(yaml.safe_dump(tree))
    subprocess.run(
        command("search", "tiny.yaml"), cwd=undisturbed, env=environment(), capture_output=True, timeout=300, check=True
    )
    expected = told(undisturbed)
    assert len({end for _, end, *_ in expected}) > 1, "no trial was stopped early"
    interrupt(folder, signal.SIGKILL, lambda: finished_trials(folder) >= 12)
    (run,) = [path.name for path in (folder / "runs").iterdir()]
    subprocess.run(command("resume", run), cwd=folder, env=environment(), capture_output=True, timeout=300, check=True)
    assert told(folder) == expected


def test_an_interruption_before_the_first_trial_ends_quietly(folder: Path) -> None:
    process = interrupt(folder, signal.SIGINT, lambda: "8 trials" in (folder / "log.txt").read_text())
    log = (folder / "log.txt").read_text()
    (run,) = [path.name for path in (folder / "runs").iterdir()]
    assert process.returncode == 130, log
    assert f"resume it: vadtune resume {run}" in log
    assert "Traceback" not in log
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert resolve_search(connect(uri), uri, "tiny").status == "KILLED"

    done = subprocess.run(
        command("resume", run), cwd=folder, env=environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [(trial.status, trial.end) for trial in trials_of(folder)] == [("FINISHED", "completed")] * SAMPLES


def test_an_unreachable_server_is_told_before_anything_starts(folder: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        command("search", "tiny.yaml", "--tracking-uri", "http://127.0.0.1:9"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vadtune: error: the tracking store http://127.0.0.1:9 must answer, got:")
    assert done.stderr.count("\n") == 1
    assert not (folder / "runs").exists()
    assert time.monotonic() - start < 30  # most of it imports
