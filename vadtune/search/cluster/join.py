"""Joins a running Ray cluster and describes its nodes."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import ray
from pyarrow import fs
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vadtune.artifacts.run_folder import is_uri
from vadtune.core.errors import SearchError, VadtuneError
from vadtune.search.cluster.token import has_token, uses_token
from vadtune.search.ray_compat import address_of_this_node, ask_cluster, set_cluster_networking

_JOIN_HELP = "start one with `ray up cluster.yaml` or `ray start --head`, and run this on one of its nodes"
_NODE_SECONDS, _REACH_SECONDS = 60.0, 5.0


class Node(NamedTuple):
    """A node of a cluster: id, address, and amounts of its resources by name."""

    id: str
    address: str
    resources: dict[str, float]


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Connects to a running Ray and disconnects at the end; an existing connection is used and kept.

    Args:
        address: ``auto`` for the cluster that this machine is a node of, or ``host:port``.

    Raises:
        SearchError: No cluster runs there, or it rejects this process.
    """
    silence_logs()
    connected = ray.is_initialized()
    try:
        found = _answering(address)
        if not connected and uses_token() and has_token():  # without one, Ray would end this process
            ask_cluster(found)
        set_cluster_networking(not found.startswith(("127.", "localhost:")))
        if not connected:
            ray.init(address=found, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # various types: no such host, another version, another token
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        token = "token" in str(error).lower() or "auth" in str(error).lower()
        if token:
            raise SearchError(
                f"--address: the cluster at {address} takes the token that its nodes share, got none or another; set "
                "RAY_AUTH_TOKEN to it, or RAY_AUTH_TOKEN_PATH to its file"
            ) from error
        raise SearchError(
            f"--address: a Ray cluster must run at {address}, got: {reason[:200]}; {_JOIN_HELP}"
        ) from error
    try:
        yield
    finally:
        if not connected:
            ray.shutdown()


def _answering(address: str) -> str:
    """Returns the ``host:port`` of a cluster that answers; Ray itself would try for minutes."""
    found = (os.environ.get("RAY_ADDRESS") or address_of_this_node() or "") if address == "auto" else address
    host, colon, port = found.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("this machine is no node of a cluster" if address == "auto" else "not host:port")
    socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    return found


def silence_logs() -> None:
    """Silences Ray and Optuna below ERROR; vadtune logs progress and failures itself."""
    import optuna  # slow, and not needed to look at a cluster

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def nodes() -> list[Node]:
    """Returns the nodes of the cluster that are alive."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [Node(node["NodeID"], node["NodeManagerAddress"], dict(node["Resources"])) for node in alive]


def can_grow() -> bool:
    """Returns whether the cluster has an autoscaler that may add nodes."""
    return "KUBERAY_GEN_RAY_START_CMD" in os.environ or (Path.home() / "ray_bootstrap_config.yaml").exists()


def on_every_node(work: Callable[[], Any]) -> list[tuple[Node, Any]]:
    """Runs a function on each node and returns its results, or the errors; the nodes need not have vadtune.

    Args:
        work: A function defined inside another one, which Ray pickles by value.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(work)
    started = [
        (node, task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote())
        for node in nodes()
    ]
    results: list[tuple[Node, Any]] = []
    for node, future in started:
        try:
            results.append((node, ray.get(future, timeout=_NODE_SECONDS)))
        except Exception as error:  # of various types; the caller interprets it
            results.append((node, error))
    return results


def check_shared(storage: str) -> None:
    """Checks, by writing test files, that this process and every node read and write the same storage.

    Args:
        storage: A folder, or a URI such as ``s3://bucket/runs``.

    Raises:
        VadtuneError: A node or this process cannot.
    """
    marker = f"shared-{secrets.token_hex(4)}"
    uri = storage if is_uri(storage) else Path(storage).absolute().as_uri()
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(f"{path}/{marker}") as stream:
            stream.write(b"here")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise VadtuneError(f"{storage}: cannot be written ({_one_line(error)}); name another place") from error

    def look() -> str:
        import uuid

        from pyarrow import fs

        mine = f"{marker}-{uuid.uuid4().hex}"  # other nodes write at the same time
        try:
            system, folder = fs.FileSystem.from_uri(uri)
            with system.open_input_stream(f"{folder}/{marker}") as stream:
                if stream.read() != b"here":
                    return "sees other content"
            with system.open_output_stream(f"{folder}/{mine}"):
                pass
            system.delete_file(f"{folder}/{mine}")
        except Exception as error:
            return " ".join(str(error).split())[:200]
        return ""

    try:
        problems = {node.address: _one_line(result) for node, result in on_every_node(look) if result}
    finally:
        filesystem.delete_file(f"{path}/{marker}")
    if problems:
        where = ", ".join(f"{address} ({problem})" for address, problem in problems.items())
        raise VadtuneError(
            f"--storage: every node must see {storage} and write to it, but not so {where}; name a folder they share, "
            "such as one on NFS, or a URI such as s3://bucket/runs"
        )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
