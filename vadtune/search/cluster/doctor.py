"""Checks a machine or a cluster before a search on it costs money."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray

from vadtune.artifacts.run_folder import local_folder
from vadtune.core.errors import VadtuneError
from vadtune.search.cluster.join import check_shared, joined, nodes, on_every_node
from vadtune.search.cluster.token import has_token, uses_token
from vadtune.search.driver.ray_start import local_ray
from vadtune.tracking.redact import without_secrets
from vadtune.tracking.store import connect

_PACKAGES = ("ray", "torch", "vadtune")
_ENOUGH_BYTES = 2 * 2**30


class Check(NamedTuple):
    """The outcome of a check: its name, whether it passed, and what was found or what to do."""

    name: str
    ok: bool
    text: str


def examine(*, address: str | None, storage: str, tracking_uri: str) -> Iterator[Check]:
    """Checks the machine or cluster, the storage and the tracking store; yields each outcome when it is known.

    Args:
        address: Address of a running Ray cluster; None to start a Ray on this machine.
        storage: Folder or URI for searches.
        tracking_uri: The MLflow store.
    """
    yield _token(address)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(joined(address) if address else local_ray())
        except VadtuneError as error:
            yield Check("cluster", False, str(error))
        else:
            yield from _node_checks()
            shared = "every node" if len(nodes()) > 1 else "this machine"
            yield _attempt("storage", lambda: check_shared(storage), f"{storage} is written and read by {shared}")
    yield _attempt("tracking", lambda: connect(tracking_uri), f"{without_secrets(tracking_uri)} answers")
    yield _free_disk(local_folder(storage))


def _token(address: str | None) -> Check:
    if not uses_token():
        return Check("token", False, "whoever reaches Ray's ports can run code; unset RAY_AUTH_MODE or set it to token")
    if has_token():
        return Check("token", True, "Ray's token is set")
    if address is None:
        return Check("token", True, "none yet, Ray makes one for this machine when it starts")
    return Check("token", False, "none; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the one all nodes share")


def _node_checks() -> Iterator[Check]:
    alive = nodes()
    total = ray.cluster_resources()
    yield Check("nodes", True, f"{len(alive)} alive, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs")
    found = on_every_node(_node_description())
    here = _node_description()()
    problems, few = [], []
    for node, seen in found:
        if isinstance(seen, Exception):
            problems.append(f"{node.address} does not run tasks ({' '.join(str(seen).split())[:150]})")
            continue
        for name, version in here["versions"].items():
            if seen["versions"][name] != version:
                problems.append(f"{node.address} has {name} {seen['versions'][name]}, here is {version}")
        if node.resources.get("GPU", 0) > seen["gpus"]:
            few.append(f"{node.address} offers {node.resources['GPU']:g} GPUs, torch sees {seen['gpus']}")
        if seen["free"] < _ENOUGH_BYTES:
            problems.append(f"{node.address} has {seen['free'] / 2**30:.1f} GiB left for temporary files; make room")
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    yield Check("versions", not problems, f"{'; '.join(problems)}; install the same" if problems else versions)
    gpus = f"torch sees all {total.get('GPU', 0):g}" if total.get("GPU") else "none, trials run on CPUs"
    yield Check("GPUs", not few, f"{'; '.join(few)}; install torch for the node's driver" if few else gpus)


def _node_description() -> Any:
    """Returns a function that describes the machine it runs on; Ray pickles it by value, it needs no vadtune."""
    packages = _PACKAGES

    def describe() -> dict[str, Any]:
        import importlib.metadata
        import platform
        import shutil
        import subprocess
        import sys
        import tempfile

        versions = {"Python": platform.python_version()}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "not installed"
        # In another process: Ray hides the GPUs from a task that asked for none.
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        code = "import torch; print(torch.cuda.device_count())"
        counted = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        gpus = int(counted.stdout) if counted.returncode == 0 else 0
        return {"versions": versions, "gpus": gpus, "free": shutil.disk_usage(tempfile.gettempdir()).free}

    return describe


def _attempt(name: str, work: Callable[[], object], success: str) -> Check:
    try:
        work()
    except VadtuneError as error:
        return Check(name, False, str(error))
    return Check(name, True, success)


def _free_disk(folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    enough = free >= _ENOUGH_BYTES
    advice = "" if enough else "; make room, or use --storage"
    return Check("free disk", enough, f"{free / 2**30:.0f} GiB at {existing}{advice}")
