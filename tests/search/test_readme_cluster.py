"""README's block of commands that shows a cluster on one machine, taken from README and run as it stands."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.cluster import ROOT, descendants, free_port
from tests.search.test_interruption import environment
from tests.search.test_local_ray import listening_addresses
from vadtune.tracking.queries import list_trials, resolve_search
from vadtune.tracking.store import connect

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc"),
    pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="needs ray[default] on the head"),
]

# In place of `ray`: nodes are on loopback, and `ray stop` would also end the Rays of others.
RAY = """#!{python}
import os, sys
from ray._private import services

services.node_ip_address_from_perspective = lambda *args, **options: "127.0.0.1"
if sys.argv[1] == "stop":
    sys.exit()
sys.argv += ["--node-ip-address=127.0.0.1", "--object-store-memory=200000000", "--disable-usage-stats"]
if "--head" in sys.argv:  # jobs look for the head where others reach this machine, unless Ray is for one node
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    sys.argv += ["--dashboard-port={pages}", "--dashboard-agent-listen-port={agent}"]
else:
    sys.argv += ["--dashboard-agent-listen-port={other_agent}"]
from ray.scripts.scripts import main
sys.exit(main())
"""
_DONE = "this command ended with"


class Shell:
    """A bash that runs one command after another, as in a terminal."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        pipe, out = subprocess.PIPE, subprocess.STDOUT
        self._bash = subprocess.Popen(["bash"], stdin=pipe, stdout=pipe, stderr=out, text=True, cwd=folder, env=env)

    def run(self, line: str) -> str:
        """Runs a line and returns what it printed."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{line}\necho '{_DONE}' $?\n")
        self._bash.stdin.flush()
        printed = ""
        for text in self._bash.stdout:
            if text.startswith(_DONE):
                assert text.split()[-1] == "0", f"{line}\n{printed}"
                return printed
            printed += text
        raise AssertionError(f"bash ended: {line}\n{printed}")

    def close(self) -> None:
        self._bash.kill()
        self._bash.communicate()


def block() -> list[str]:
    """Returns the lines of README's block."""
    text = (ROOT / "README.md").read_text().partition("To see all of this on one machine")[2]
    lines = text.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip() for line in lines]


def processes_of(folder: Path) -> set[int]:
    """Returns the processes that were started with a folder in their arguments, and all that those started."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_of = str(folder).encode() in path.read_bytes()
        except OSError:
            continue
        if is_of and int(path.parent.name) != os.getpid():
            found |= descendants(int(path.parent.name))
    return found


@pytest.fixture
def ray_files() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets need a short path
    try:
        yield folder
    finally:
        while pids := processes_of(folder):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_cluster_on_one_machine_of_the_readme(ray_files: Path, tmp_path: Path) -> None:
    pages = free_port()
    ports = {"pages": pages, "agent": free_port(), "other_agent": free_port()}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text(RAY.format(python=sys.executable, **ports))
    (tmp_path / "bin" / "ray").chmod(0o755)
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    python = Path(sys.executable).parent
    env = {
        **environment(),
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(python), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(ray_files),  # where `auto` looks, too
    }
    replaced = {"6379": str(free_port()), "8265": str(pages), "digits.yaml": "digits.yaml search.samples=6"}
    lines = block()
    for old, new in replaced.items():
        lines = [line.replace(old, new) for line in lines]
    export, head, node, doctor, submit, logs, unfinished, resume, stop = lines
    shell = Shell(tmp_path, env)
    try:
        for line in (export, head, node):
            shell.run(line)
        addresses = listening_addresses(processes_of(ray_files))
        assert addresses
        assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
        assert "2 alive, 2 CPUs" in shell.run(doctor)
        job = next(word for word in shell.run(submit).split() if word.startswith("raysubmit_"))
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS")
        exported = shell.run(f"printenv {' '.join(names)}").split()
        printed: list[str] = []
        following = threading.Thread(target=lambda: printed.append(shell.run(logs.replace("raysubmit_...", job))))
        following.start()
        other = Shell(tmp_path, {**env, **dict(zip(names, exported, strict=True))})
        try:
            deadline = time.monotonic() + 180
            while not list(tmp_path.glob("shared/*/tune/*/checkpoint_*")):
                assert time.monotonic() < deadline, other.run(f"vadtune logs {job}")
                time.sleep(0.2)
            other.run(f"vadtune stop {job}")
            following.join(120)
        finally:
            other.close()
        assert "resume it: vadtune resume digits-" in printed[0]
        run = next(line for line in shell.run(unfinished).splitlines() if line.startswith("digits-"))
        assert "finished after" in shell.run(resume.replace("RUN", run))
        shell.run(stop)
    finally:
        shell.close()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = connect(uri)
    assert len(list_trials(client, resolve_search(client, uri, "digits"))) == 6
