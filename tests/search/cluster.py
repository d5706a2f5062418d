"""Ray nodes on this machine, on loopback, in processes of their own that are ended by their ids."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
# `ray start` takes 127.0.0.1 for the address by which others reach this machine; here nobody else is to.
RAY = """
import sys
from ray._private import services
services.node_ip_address_from_perspective = lambda *args, **options: "127.0.0.1"
from ray.scripts.scripts import main
sys.exit(main())
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def descendants(pid: int) -> set[int]:
    """Returns a process and all it started, as /proc tells."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Ends a process and all it started, at once."""
    for pid in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(20)


def shipped_health_checks() -> dict[str, str]:
    """Returns the settings of cluster.yaml by which a head notices a dead node."""
    file = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    line = next(line for line in file["head_start_ray_commands"] if "--head" in line)
    return dict(word.split("=", 1) for word in line.split() if word.startswith("RAY_health_check"))


class Cluster:
    """A head, and further nodes that join it.

    Args:
        folder: For Ray's files and the nodes' logs; its path is short.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "TUNE_"))}
        self.env = {
            **clean,
            **shipped_health_checks(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # of jobs
            "PYTHONWARNINGS": "ignore",
        }
        self.nodes: list[subprocess.Popen[str]] = []

    def start_node(self, *extra: str, cpus: int = 1) -> subprocess.Popen[str]:
        """Starts a node, the first one being the head, and waits until it is up."""
        where = [f"--address={self.address}"]
        if not self.nodes:
            where = ["--head", f"--port={self.port}", f"--temp-dir={self._folder}"]
            where += ["--include-dashboard=false"] if "--include-dashboard=true" not in extra else []
        command = [sys.executable, "-c", RAY, "start", *where, "--node-ip-address=127.0.0.1"]
        command += [f"--num-cpus={cpus}", "--object-store-memory=200000000", "--disable-usage-stats", "--block", *extra]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        log = self._folder / f"node-{len(self.nodes)}.log"
        with log.open("w") as file:
            node = subprocess.Popen(command, env=self.env, stdout=file, stderr=file, text=True)
        self.nodes.append(node)
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return node

    def run(self, *arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Runs a vadtune command against the cluster."""
        command = [sys.executable, "-m", "vadtune", *arguments]
        return subprocess.run(
            command, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )


@contextlib.contextmanager
def cluster(*extra: str, cpus: int = 1) -> Iterator[Cluster]:
    """A cluster with a head of so many CPUs, started with these arguments too; all of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets need a short path
    here = Cluster(folder)
    if "--include-dashboard=true" in extra:
        # What takes jobs looks for the head at the address others reach this machine by, unless Ray is for one node.
        here.env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        here.start_node(*extra, cpus=cpus)
        yield here
    finally:
        for node in reversed(here.nodes):
            kill_tree(node)
        shutil.rmtree(folder, ignore_errors=True)
