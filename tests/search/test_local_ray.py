"""What a search's own Ray shows to others: nothing."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.search.cluster import descendants
from vadtune.core.locks import try_lock
from vadtune.search.driver import ray_folder

pytestmark = pytest.mark.ray


def sockets_of(pids: set[int]) -> Iterator[str]:
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                yield target[8:-1]


def listening_addresses(pids: set[int]) -> set[str]:
    """Returns the addresses these processes listen on for TCP."""
    inodes, addresses = set(sockets_of(pids)), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                words = bytes.fromhex(fields[1].partition(":")[0])
                raw = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))  # words in host order
                address = ipaddress.ip_address(raw)
                addresses.add(str(getattr(address, "ipv4_mapped", None) or address))
    return addresses


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_nothing_listens_beyond_loopback(ray_here: None) -> None:
    @ray.remote(num_cpus=0)
    def work() -> int:
        return os.getpid()

    worker = ray.get(work.remote())
    pids = descendants(os.getpid())
    assert worker in pids
    addresses = listening_addresses(pids)
    assert addresses, "Ray listens somewhere"
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses


def test_no_telemetry_is_sent_unless_asked_for() -> None:
    names = "RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY"
    code = f"import os, vadtune.search.driver.run; print(*map(os.environ.get, {names}))"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "true"]


FAILS_AT_ONCE = """
import ray
import psutil  # comes with Ray
from vadtune.search.driver.ray_start import pending_ray

def running():
    children = psutil.Process().children(recursive=True)
    return any(child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in children)

shutdown = ray.shutdown
ray.shutdown = lambda: (print("shut down", running()), shutdown())
try:
    with pending_ray():
        raise ValueError("a mistake that is found while Ray starts")
except ValueError:
    print("initialized", ray.is_initialized())
"""


def test_a_block_that_fails_while_ray_starts_shuts_ray_down_while_it_runs() -> None:
    """Ray's processes die with the thread that started them, and a client that loses them ends its process."""
    done = subprocess.run([sys.executable, "-c", FAILS_AT_ONCE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["shut down True", "initialized False"]


KILLS_ITSELF = """
import os, signal
from pathlib import Path
from vadtune.search.driver.ray_start import local_ray

with local_ray():
    print(*(path.name for path in Path(os.environ["RAY_TMPDIR"]).iterdir()), flush=True)
    if os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_files_of_a_ray_go_with_it_or_with_the_next_start_after_a_crash() -> None:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as parent:  # Ray's sockets need a short path

        def start(**env: str) -> list[str]:
            clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
            command = [sys.executable, "-c", KILLS_ITSELF]
            done = subprocess.run(
                command, env={**clean, "RAY_TMPDIR": parent, **env}, stdout=subprocess.PIPE, text=True
            )
            assert done.returncode == (-signal.SIGKILL if env else 0)
            return done.stdout.split()

        (killed,) = start(KILL="1")
        (folder,) = Path(parent).iterdir()
        assert folder.name == killed
        assert list(folder.glob("session_*/logs/raylet.*")), "its logs stay until the next start"
        deadline = time.monotonic() + 30
        while ray_folder.is_used(folder):
            assert time.monotonic() < deadline, "Ray ends with the process that started it"
            time.sleep(0.2)
        assert killed not in start()
        assert list(Path(parent).iterdir()) == []


def test_only_unused_folders_of_ones_own_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_folder, "_parent", lambda: tmp_path)
    for name in ("unused", "locked", "argument"):
        (tmp_path / f"vadtune-ray-{name}" / "session").mkdir(parents=True)
    (tmp_path / "ray").mkdir()
    (tmp_path / "vadtune-ray-link").symlink_to(tmp_path / "ray")
    lock = os.open(tmp_path / "vadtune-ray-locked", os.O_RDONLY)
    assert try_lock(lock)
    code = "print(flush=True); input()"
    command = [sys.executable, "-c", code, f"--temp-dir={tmp_path / 'vadtune-ray-argument'}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ZeroDivisionError), ray_folder.ray_folder() as failed:
            raise ZeroDivisionError
        os.close(lock)
        left = {"vadtune-ray-locked", "vadtune-ray-argument", "ray", "vadtune-ray-link", failed.name}
        assert {path.name for path in tmp_path.iterdir()} == left
        with pytest.raises(KeyboardInterrupt), ray_folder.ray_folder():
            raise KeyboardInterrupt
        assert {path.name for path in tmp_path.iterdir()} == {"vadtune-ray-argument", "ray", "vadtune-ray-link"}
        process.communicate(b"\n")
