"""What can be reached from outside, and what is told to others: nothing that was not asked for."""

from __future__ import annotations

import argparse
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.search.cluster import descendants, free_port, kill_tree
from tests.search.test_local_ray import listening_addresses
from vadtune.cli.searches import report
from vadtune.search.driver.run import SearchOutcome
from vadtune.tracking.store import connect

SECRET = "http://me:hunter2@127.0.0.1:9"


@contextmanager
def pages(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `vadtune ui` on a store, until it listens."""
    connect(f"sqlite:///{folder / 'mlflow.db'}")
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "vadtune", "ui", "--port", str(free_port()), *arguments]
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, text=True)
    try:
        deadline = time.monotonic() + 90
        while not listening_addresses(descendants(server.pid)):
            assert server.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield server
    finally:
        kill_tree(server)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_the_pages_are_for_this_machine_alone(tmp_path: Path) -> None:
    with pages(tmp_path) as server:
        addresses = listening_addresses(descendants(server.pid))
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
    assert "exposed" not in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_what_is_exposed_is_told(tmp_path: Path) -> None:
    with pages(tmp_path, "--host", "127.0.0.2", "--expose") as server:  # this machine's too, but asked for
        assert listening_addresses(descendants(server.pid)) == {"127.0.0.2"}
    log = (tmp_path / "log.txt").read_text()
    assert "exposed without a password to all who reach 127.0.0.2:" in log
    assert "they can read, change and delete every experiment" in log


@pytest.mark.parametrize("interrupted", [True, False])
def test_no_command_that_is_shown_holds_a_secret(interrupted: bool, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("runs/tiny-1")
    outcome = SearchOutcome("tiny-1", "tiny", SECRET, interrupted, {}, {}, 1.0, None, logged=False, folder=folder)
    args = argparse.Namespace(tracking_uri=SECRET, storage="runs", address=None)
    with caplog.at_level("INFO"):
        assert report(outcome, args) == (130 if interrupted else 0)
    command = "resume" if interrupted else "sync"
    assert f": vadtune {command} tiny-1 # with the same --tracking-uri\n" in caplog.text, "nothing that *** stands for"
    assert "hunter2" not in caplog.text
