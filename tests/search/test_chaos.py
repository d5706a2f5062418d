"""Searches that lose workers, nodes, drivers and their tracking server, and finish every trial once."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.search.cluster import cluster, descendants, kill_tree
from tests.search.servers import Server
from tests.search.test_interruption import command, environment, finished_trials, trials_of
from tests.search.test_run import tiny
from tests.tracking.flaky_proxy import FlakyProxy, at_random
from vadtune.artifacts.run_folder import SNAPSHOT_FILE
from vadtune.tracking.queries import Trial, list_trials, resolve_search
from vadtune.tracking.store import connect

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]

REPORTS = 9


def search_file(folder: Path, samples: int, epochs: int = 900) -> None:
    tree = tiny(samples=samples, scheduler="none", report=epochs // REPORTS, cpus_per_trial=1, pack=1)
    tree["train"]["epochs"] = epochs
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


DRIVERS: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_driver_stays() -> Iterator[None]:
    yield
    while DRIVERS:
        driver = DRIVERS.pop()
        if driver.poll() is None:
            kill_tree(driver)


def started(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    with (folder / "log.txt").open("a") as log:
        driver = subprocess.Popen(
            command(*arguments), cwd=folder, env=env or environment(), stdout=log, stderr=log, text=True
        )
    DRIVERS.append(driver)
    return driver


def ended(process: subprocess.Popen[str], folder: Path, seconds: float = 240) -> None:
    assert process.wait(seconds) == 0, (folder / "log.txt").read_text()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    here = Server(tmp_path)
    here.start()
    here.wait()
    yield here
    here.kill()


def check_every_sample_once(trials: list[Trial], samples: int) -> None:
    assert [trial.name for trial in trials] == [f"trial-{number:04d}" for number in range(1, samples + 1)]
    assert {(trial.status, trial.end) for trial in trials} == {("FINISHED", "completed")}
    assert len({trial.trial_id for trial in trials}) == samples
    assert len({repr(sorted(trial.params.items())) for trial in trials}) == samples, "a configuration was tried twice"


def check_histories(uri: str, trials: list[Trial], epochs: int = 900) -> None:
    client = connect(uri)
    for trial in trials:
        steps = [metric.step for metric in client.get_metric_history(trial.run_id, "val_missing_rmse")]
        assert steps == sorted(set(steps)), "in order, and none twice"
        assert set(range(epochs // REPORTS, epochs + 1, epochs // REPORTS)) <= set(steps), "and none lost"


def test_a_tracking_server_that_dies_for_a_while_loses_nothing(server: Server, tmp_path: Path) -> None:
    search_file(tmp_path, 8)
    log = tmp_path / "log.txt"
    search = started(tmp_path, "search", "tiny.yaml", "--tracking-uri", server.uri)
    wait_for(lambda: finished_trials(tmp_path) >= 2, search, log)
    server.kill()
    wait_for(lambda: finished_trials(tmp_path) >= 5, search, log)  # the search goes on without
    server.start()
    ended(search, tmp_path)
    assert "the tracking store does not answer, results are kept until it does" in log.read_text()
    assert "the tracking store answers again" in log.read_text()
    assert "View run" not in log.read_text()
    check_every_sample_once(server.trials(), 8)
    check_histories(server.uri, server.trials())


def test_a_tracking_server_that_dies_for_good_ends_no_search(server: Server, tmp_path: Path) -> None:
    """Its password is neither written down nor shown, whatever goes wrong."""
    search_file(tmp_path, 6)
    log = tmp_path / "log.txt"
    secret = server.uri.replace("http://", "http://me:hunter2@")
    search = started(tmp_path, "search", "tiny.yaml", "--tracking-uri", secret)
    wait_for(lambda: finished_trials(tmp_path) >= 2, search, log)
    server.kill()
    ended(search, tmp_path)
    (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
    assert f"vadtune sync {run}" in log.read_text()
    assert "Traceback" not in log.read_text()
    server.start()
    server.wait()

    def sync(**env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("sync", run),
            cwd=tmp_path,
            env={**environment(), **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert "pass the URI with its password in MLFLOW_TRACKING_URI" in sync().stderr
    for message in ("bytes delivered", "the store has everything"):
        done = sync(MLFLOW_TRACKING_URI=secret)
        assert done.returncode == 0, done.stderr
        assert message in done.stderr
        check_every_sample_once(server.trials(), 6)
        check_histories(server.uri, server.trials())
    client = connect(server.uri)
    found = resolve_search(client, server.uri, run)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "server.txt"]
    assert not any(b"hunter2" in content for content in [*written, repr((found, server.trials())).encode()])


def test_a_driver_ended_at_ten_random_moments_finishes_every_sample_once(tmp_path: Path) -> None:
    """Killed or interrupted, from the middle of its start to the middle of its trials."""
    samples, epochs = 32, 4500  # so long that no machine is done before the last of them
    search_file(tmp_path, samples, epochs=epochs)
    random_ = random.Random(0)
    log = tmp_path / "log.txt"
    process = started(tmp_path, "search", "tiny.yaml")
    wait_for(lambda: bool(list(tmp_path.glob("runs/*/run.json"))), process, log)
    (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
    for moment in range(10):
        if moment % 2:  # among its trials, however long the start takes
            before = finished_trials(tmp_path)
            wait_for(lambda before=before: finished_trials(tmp_path) > before, process, log)  # type: ignore[misc]
        time.sleep(random_.uniform(0, 1.5 if moment % 2 else 12))
        assert process.poll() is None, log.read_text()
        process.send_signal(random_.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        process.wait(60)
        process = started(tmp_path, "resume", run)
    ended(process, tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert resolve_search(connect(uri), uri, "tiny").status == "FINISHED"
    trials = trials_of(tmp_path)
    check_every_sample_once(trials, samples)
    check_histories(uri, trials, epochs=epochs)
    told = sorted(trial.value for trial in sampler_history(tmp_path / "runs" / run))
    assert told == pytest.approx(sorted(trial.metrics["val_missing_rmse"] for trial in trials))


@pytest.mark.parametrize("victim", ["gcs_server", "RuntimeEnvAgent", "driver"])
def test_when_a_process_of_ray_or_the_driver_dies_the_last_line_says_how_to_resume(tmp_path: Path, victim: str) -> None:
    search_file(tmp_path, 6)
    log = tmp_path / "log.txt"
    process = started(tmp_path, "search", "tiny.yaml")
    wait_for(lambda: finished_trials(tmp_path) > 0, process, log)
    (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
    if victim == "driver":
        process.kill()
    else:
        (pid,) = (pid for pid in descendants(process.pid) if victim in Path(f"/proc/{pid}/cmdline").read_text()[:200])
        os.kill(pid, signal.SIGKILL)
    assert process.wait(30) == (-signal.SIGKILL if victim == "driver" else 1)
    words = (
        f"vadtune: error: search {run}: its process was ended from outside, or Ray's; resume it: vadtune resume {run}"
    )
    deadline = time.monotonic() + 10
    while log.read_text().splitlines()[-1] != words:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    ended(started(tmp_path, "resume", run), tmp_path)
    check_every_sample_once(trials_of(tmp_path), 6)


def sampler_history(folder: Path) -> list[Any]:
    """Returns what Optuna was told, by the snapshot of a search."""
    with zipfile.ZipFile(folder / SNAPSHOT_FILE) as archive:
        state = pickle.loads(archive.read("searcher-state.pkl"))
    trials = state["_ot_study"].trials
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    return list(trials)


def test_two_searches_at_once_share_store_and_folder(tmp_path: Path) -> None:
    search_file(tmp_path, 5)
    both = [started(tmp_path, "search", "tiny.yaml") for _ in range(2)]
    for process in both:
        ended(process, tmp_path)
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(runs) == 2
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for run in runs:
        check_every_sample_once(list_trials(connect(uri), resolve_search(connect(uri), uri, run)), 5)


def test_sixty_four_trials_survive_a_worker_a_server_a_node_and_a_driver(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One search and one report, through everything."""
    search_file(tmp_path, 64)
    began = time.monotonic()
    log = tmp_path / "log.txt"
    with cluster() as here:
        here.start_node()
        arguments = ("--address", here.address, "--tracking-uri", server.uri)
        search = started(tmp_path, "search", "tiny.yaml", *arguments, env=here.env)
        wait_for(lambda: finished_trials(tmp_path) >= 4, search, log)

        wait_for(lambda: bool(workers_of(here.nodes[0])), search, log)
        os.kill(workers_of(here.nodes[0])[0], signal.SIGKILL)
        wait_for(lambda: finished_trials(tmp_path) >= 12, search, log)

        server.kill()
        wait_for(lambda: finished_trials(tmp_path) >= 20, search, log)
        kill_tree(here.nodes.pop())  # the second node, while the server is away
        wait_for(lambda: finished_trials(tmp_path) >= 28, search, log)
        server.start()
        wait_for(lambda: "answers again" in log.read_text(), search, log)
        wait_for(lambda: finished_trials(tmp_path) >= 36, search, log)

        search.kill()
        search.wait(20)
        (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
        assert "is retried" in log.read_text()
        ended(started(tmp_path, "resume", run, "--address", here.address, env=here.env), tmp_path, 300)
    check_every_sample_once(server.trials(), 64)
    check_histories(server.uri, server.trials())
    done = subprocess.run(
        command("results", "tiny", "--tracking-uri", server.uri, "--format", "csv"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert len(rows) == 64
    client = connect(server.uri)
    retried = sum("vadtune.retries" in client.get_run(trial.run_id).data.tags for trial in server.trials())
    assert retried > 0
    with capsys.disabled():
        sys.stdout.write(
            f"\n{run}: {len(rows)} trials, each {rows[0]['end']} once, in {time.monotonic() - began:.0f}s, through the "
            f"kill of a worker, of a tracking server, of a node and of the driver; {retried} were tried again\n"
        )


def test_sixty_four_trials_through_a_proxy_that_fails_at_random(server: Server, tmp_path: Path) -> None:
    """After ``sync``, each value is in the store once or in the file of rejected lines, and no run is RUNNING."""
    search_file(tmp_path, 64, epochs=90)
    choose = at_random(1, lose=0.05, cut=0.05, fail=0.02, reject=0.1)
    log, is_flaky = tmp_path / "log.txt", threading.Event()
    with FlakyProxy(server.uri, lambda *request: choose(*request) if is_flaky.is_set() else None) as proxy:
        search = started(tmp_path, "search", "tiny.yaml", "--tracking-uri", proxy.uri)
        wait_for(lambda: bool(list(tmp_path.glob("runs/*/run.json"))), search, log)
        is_flaky.set()
        ended(search, tmp_path, 400)
        (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
        subprocess.run(command("sync", run), cwd=tmp_path, env=environment(), timeout=300, check=True)
        assert min(proxy.counts[fault] for fault in ("lose", "cut", "fail", "reject")) > 0, proxy.counts
    assert "Traceback" not in log.read_text()
    client, trials = connect(server.uri), server.trials()
    check_every_sample_once([replace(trial, status="FINISHED", end="completed") for trial in trials], 64)
    search_run = resolve_search(client, server.uri, run)
    runs = client.search_runs([search_run.experiment_id], max_results=1000)
    assert len(runs) == 65
    assert "RUNNING" not in {run.info.status for run in runs}
    path = tmp_path / "runs" / run / "mlflow.rejected.jsonl"
    lines = [json.loads(line)["line"] for line in path.read_text().splitlines()] if path.exists() else []
    for trial in trials:
        steps = [metric.step for metric in client.get_metric_history(trial.run_id, "val_missing_rmse")]
        assert len(set(steps)) == len(steps), "each value once"
        # Also there: a line whose answer was lost, and which was rejected when it was sent again.
        aside = {line["epoch"] for line in lines if (line["op"], line.get("trial")) == ("metrics", trial.trial_id)}
        assert aside | set(steps) == set(range(10, 91, 10)), "in the store or in the file"


def workers_of(node: subprocess.Popen[str]) -> list[int]:
    """Returns the processes of a node that train; Ray gives them the name of what they do."""
    return [pid for pid in descendants(node.pid) if "ray::" in (name := command_line(pid)) and ".train" in name]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it ended meanwhile
        return ""
