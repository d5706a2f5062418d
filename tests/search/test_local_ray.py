"""What a search's own Ray shows to others: nothing."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.search.cluster import descendants

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
