"""Searches submitted to a real head, where ray[default] is installed."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.cluster import Cluster, cluster, free_port
from tests.search.test_cluster import search_file
from tests.search.test_interruption import trials_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="needs ray[default] on the head"),
]


class Head:
    """A head that takes jobs."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        self.cluster, self.address = cluster, f"http://127.0.0.1:{port}"

    def run(self, *arguments: str, cwd: Path) -> str:
        done = self.cluster.run(*arguments, "--address", self.address, cwd=cwd, timeout=180)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self, job: str, cwd: Path) -> str:
        return str(json.loads(self.run("status", job, "--format", "json", cwd=cwd))[0]["state"])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port = free_port()
    with cluster("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}") as here:
        alone = here.env.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        here.start_node()  # as in README: a second node of the same machine
        here.env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = alone
        yield Head(here, port)


def submitted(head: Head, folder: Path) -> str:
    store = f"sqlite:///{folder / 'mlflow.db'}"
    return head.run(
        "submit", "tiny.yaml", "--storage", str(folder / "runs"), "--tracking-uri", store, cwd=folder
    ).strip()


def test_a_submitted_search_runs_on_the_cluster(head: Head, tmp_path: Path) -> None:
    search_file(tmp_path, samples=3)
    job = submitted(head, tmp_path)
    logs = head.run("logs", job, "--follow", cwd=tmp_path)
    assert "finished after" in logs
    assert head.state(job, tmp_path) == "succeeded"
    assert [trial.end for trial in trials_of(tmp_path)] == ["completed"] * 3


def test_a_stopped_search_can_be_resumed(head: Head, tmp_path: Path) -> None:
    search_file(tmp_path, samples=4, epochs=3000)
    job = submitted(head, tmp_path)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("runs/*/tune/*/checkpoint_*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    head.run("stop", job, cwd=tmp_path)
    while head.state(job, tmp_path) == "running":
        assert time.monotonic() < deadline
    (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
    done = head.cluster.run("resume", run, "--address", head.cluster.address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [trial.end for trial in trials_of(tmp_path)] == ["completed"] * 4


def test_an_unknown_job_is_one_error(head: Head, tmp_path: Path) -> None:
    done = head.cluster.run("logs", "nosuch", "--address", head.address, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "`vadtune status` lists the jobs" in done.stderr
