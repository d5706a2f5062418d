"""A cluster of two nodes on this machine: joined, checked, and one of its nodes lost."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.search.cluster import Cluster, cluster, descendants, kill_tree
from tests.search.test_interruption import finished_trials, trials_of
from tests.search.test_local_ray import listening_addresses
from tests.search.test_run import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with cluster() as here:
        here.start_node("--resources", '{"accelerator_type:A10G": 1}')
        yield here


def search_file(folder: Path, *, epochs: int = 27, **search: object) -> None:
    tree = tiny(scheduler="none", **{"cpus_per_trial": 1, "pack": 1, **search})
    tree["train"]["epochs"] = epochs
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))


def test_the_doctor_finds_a_healthy_cluster_healthy(two_nodes: Cluster, tmp_path: Path) -> None:
    done = two_nodes.run("doctor", "--address", two_nodes.address, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert set(lines) == {"token:", "nodes:", "versions:", "GPUs:", "storage:", "tracking:", "free"}
    assert "2 alive, 2 CPUs, 0 GPUs" in lines["nodes:"]
    assert "written and read by every node" in lines["storage:"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_these_nodes_are_for_this_machine_alone(two_nodes: Cluster) -> None:
    for node in two_nodes.nodes:
        addresses = listening_addresses(descendants(node.pid))
        assert addresses
        assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses


def test_the_doctor_says_what_to_do(two_nodes: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = str(tmp_path / "file" / "runs")
    arguments = ["--address", two_nodes.address, "--storage", storage, "--tracking-uri", "http://127.0.0.1:9"]
    done = two_nodes.run("doctor", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    problems = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert [line.split()[1] for line in problems] == ["storage:", "tracking:"]
    assert "name another place" in problems[0]
    assert "start the server" in problems[1]


def test_a_wrong_token_is_refused_on_one_line(two_nodes: Cluster, tmp_path: Path) -> None:
    search_file(tmp_path)
    env = {**two_nodes.env, "RAY_AUTH_TOKEN": "0" * 64}
    options = ["--address", two_nodes.address]
    for arguments, code in ((["search", "tiny.yaml"], 2), (["doctor"], 1)):
        command = [sys.executable, "-m", "vadtune", *arguments, *options]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code
        (line,) = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("ok ")]
        assert "--address: the cluster at" in line
        assert "takes the token that its nodes share, got none or another; set RAY_AUTH_TOKEN" in line
    assert not (tmp_path / "runs").exists()


def test_what_no_node_has_is_refused_and_an_accelerator_is_found(two_nodes: Cluster, tmp_path: Path) -> None:
    search_file(tmp_path, samples=2)
    address = ["--address", two_nodes.address]
    # Two nodes of one core each hold no trial of two.
    done = two_nodes.run("search", "tiny.yaml", "search.cpus_per_trial=2", *address, cwd=tmp_path)
    assert done.returncode == 2
    assert "search.cpus_per_trial: must be at most the 1 CPUs there are, got 2; lower it" in done.stderr
    done = two_nodes.run("search", "tiny.yaml", "search.accelerator_type=A100", *address, cwd=tmp_path)
    assert done.returncode == 2
    assert "search.accelerator_type: unknown type 'A100': did you mean 'A10G'?" in done.stderr
    done = two_nodes.run("search", "tiny.yaml", "search.accelerator_type=A10G", *address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {trial.end for trial in trials_of(tmp_path)} == {"completed"}


def test_a_node_that_dies_in_mid_search_costs_no_trial(two_nodes: Cluster, tmp_path: Path) -> None:
    search_file(tmp_path, epochs=1500, samples=8)
    command = [sys.executable, "-m", "vadtune", "search", "tiny.yaml", "--address", two_nodes.address]
    with (tmp_path / "log.txt").open("w") as log:
        search = subprocess.Popen(command, cwd=tmp_path, env=two_nodes.env, stdout=log, stderr=log, text=True)
    try:
        deadline = time.monotonic() + 120
        while finished_trials(tmp_path) < 3:
            assert search.poll() is None, (tmp_path / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        kill_tree(two_nodes.nodes.pop())
        killed = time.monotonic()
        while "is retried" not in (tmp_path / "log.txt").read_text():
            assert search.poll() is None, "a trial ran on the node that was killed"
            assert time.monotonic() - killed < 20, "a dead node is noticed in seconds"
            time.sleep(0.1)
        assert search.wait(240) == 0, (tmp_path / "log.txt").read_text()
    finally:
        if search.poll() is None:
            search.kill()
            search.wait(20)
    trials = trials_of(tmp_path)
    assert [trial.name for trial in trials] == [f"trial-{number:04d}" for number in range(1, 9)]
    assert {trial.end for trial in trials} == {"completed"}
