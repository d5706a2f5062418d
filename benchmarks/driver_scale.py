"""What the process that drives a search costs: by number of trials, by number of nodes, by trials at once.

    python benchmarks/driver_scale.py trials [--sizes 1000 10000]     about 12 minutes
    python benchmarks/driver_scale.py nodes [--nodes 1 2 4 8]         about 6 minutes
    python benchmarks/driver_scale.py concurrency [--slots 256 1000]  about 5 minutes

Whole searches with the real Tune controller, sampler, ASHA, callbacks, snapshots, spool and MLflow store, and with
real messages, placement groups and checkpoints. Only the trials are no processes of their own, which take 150 MB each:
those of a node live in one process and sleep instead of training. Cores are made up, and for ``nodes`` further raylets
of Ray run on this machine. Each search is a process of its own. Figures are CPU milliseconds of the driver for a
trial, which hardly depend on what else runs, and its memory; the last line has their ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.tune.execution.class_cache import _ActorClassCache
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vadtune.config import REPORTED_METRICS, parse_search
from vadtune.search.algorithms.schedulers import EPOCH, next_report, report_epochs
from vadtune.search.driver.start import start_search
from vadtune.search.resume.retries import Recoverable
from vadtune.search.trials import placement

SLOTS_OF_A_NODE, ROUNDS = 8, 4
_STORE_BYTES = 200 * 2**20


def search_of(samples: int, scheduler: str = "asha") -> dict[str, Any]:
    """Returns a search with as many parameters as those of the shipped search files."""
    network = {"when": {"model.layers": ">0"}}
    return {
        "name": "scale",
        "data": {"source": "iris", "missing": {"ratio": 0.3}},
        "model": {
            "latent": {"int": [1, 4]},
            "layers": {"int": [0, 2]},
            "hidden": {"choice": [128, 256], "when": {"layers": ">0"}},
        },
        "train": {
            "epochs": 9,
            "kl_weight": {"loguniform": [0.05, 1]},
            "net_lr": {"loguniform": [1e-3, 1e-2], **network},
            "weight_decay": {"loguniform": [1e-4, 1.0]},
        },
        "infer": {"steps": 10, "lr": {"loguniform": [0.1, 0.25]}},
        "search": {"samples": samples, "scheduler": scheduler, "grace_epochs": 1, "pack": 1},
    }


class IdleTrial(Recoverable):
    """Reports numbers that depend on its configuration, at the epochs at which a trial reports."""

    def setup(self, config: dict[str, Any], *, search: Any, **unused: Any) -> None:
        """Keeps the search file."""
        self._search = search
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial."""
        self._due, self._epoch = report_epochs(self._search.search, self._search.epochs), 0
        if self._search.search.scheduler == "none":
            self._due = self._due[-1:]
        self._score = zlib.crc32(repr(sorted(new_config.items())).encode()) / 2**32
        return True

    def step(self) -> dict[str, Any]:
        """Returns as many numbers as a trial reports."""
        self._epoch = next_report(self._due, self._epoch)
        scores = dict.fromkeys(REPORTED_METRICS, self._score + 1 / self._epoch)
        return {**scores, EPOCH: self._epoch, "done": self._epoch >= self._due[-1]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a small file."""
        (Path(checkpoint_dir) / "epoch").write_text(str(self._epoch))

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Reads it."""
        self._epoch = int((Path(checkpoint_dir or "") / "epoch").read_text())


class TrialHost:
    """The trials of a node, in one process; each step takes so many seconds, in which the others go on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._trials: dict[int, Any] = {}

    async def create(self, key: int, trainable: Any, kwargs: dict[str, Any]) -> None:
        """Makes a trial."""
        self._trials[key] = trainable(**kwargs)

    async def call(self, key: int, name: str, args: Any, kwargs: Any) -> Any:
        """Calls a method of a trial."""
        if name.startswith("__ray"):
            return None
        if name == "train":
            await asyncio.sleep(self._seconds)
        return getattr(self._trials[key], name)(*args, **kwargs)


class HostedClass:
    """Stands in for the remote class of a trainable: its actors are objects of hosts."""

    def __init__(self, trainable: Any, hosts: list[Any]) -> None:
        self._trainable, self._hosts, self._count = ray.put(trainable), hosts, 0

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return ray.actor.ActorClass

    def options(self, **options: Any) -> HostedClass:
        """Ignores where to run; the placement group was waited for."""
        return self

    def remote(self, **kwargs: Any) -> HostedActor:
        """Makes an object of the next host."""
        self._count += 1
        return HostedActor(self._hosts[self._count % len(self._hosts)], self._count, self._trainable, kwargs)


class HostedActor:
    """Stands in for the handle of an actor."""

    def __init__(self, host: Any, key: int, trainable: Any, kwargs: dict[str, Any]) -> None:
        self._host, self._key = host, key
        host.create.remote(key, trainable, kwargs)

    def __getattr__(self, name: str) -> Any:
        return HostedMethod(lambda *args, **kwargs: self._host.call.remote(self._key, name, args, kwargs))


class HostedMethod:
    """Stands in for a method of an actor."""

    def __init__(self, remote: Callable[..., Any]) -> None:
        self.remote = remote


def run_search(samples: int, slots: int, nodes: int, seconds: float, scheduler: str) -> dict[str, float]:
    """Runs a search in this process and returns what it cost."""
    logging.disable(logging.WARNING)
    cluster = Cluster()
    for _ in range(nodes):
        cluster.add_node(num_cpus=slots // nodes, object_store_memory=_STORE_BYTES, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    remote, options = ray.remote(TrialHost), {"num_cpus": 0, "max_concurrency": 10_000}
    alive = [node["NodeID"] for node in ray.nodes()]
    hosts = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **options).remote(seconds)
        for node in alive
    ]
    classes: dict[Any, HostedClass] = {}

    def hosted(cache: Any, trainable: Any) -> HostedClass:
        return classes.setdefault(trainable, HostedClass(trainable, hosts))

    kill = ray.kill
    ray.kill = lambda actor, **options: None if isinstance(actor, HostedActor) else kill(actor, **options)
    _ActorClassCache.get = hosted
    vars(placement)["TrainTrial"] = IdleTrial
    with tempfile.TemporaryDirectory() as scratch:
        file = parse_search(search_of(samples, scheduler))
        cpu = time.process_time()
        outcome = start_search(file, storage=scratch, tracking_uri=f"sqlite:///{scratch}/mlflow.db")
        cpu = time.process_time() - cpu
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    ray.shutdown()
    cluster.shutdown()
    return {"seconds": outcome.seconds, "cpu": cpu, "megabytes": memory}


def measured(samples: int, slots: int, nodes: int = 1, seconds: float = 0.0, scheduler: str = "asha") -> dict[str, Any]:
    """Runs a search in a process of its own, prints its line and returns its figures."""
    options = json.dumps([samples, slots, nodes, seconds, scheduler])
    environment = {**os.environ, "RAY_prestart_worker_first_driver": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "one", "--options", options]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["ms"] = 1e3 * found["cpu"] / samples
    rate, share = samples / found["seconds"], found["cpu"] / found["seconds"]
    print(
        f"{samples:6} {slots:6} {nodes:6} {found['seconds']:9.0f} {rate:10.2f} {found['ms']:12.1f} {share:8.2f}"
        f" {found['megabytes']:6.0f}",
        flush=True,
    )
    return found


def main() -> None:
    """Runs the searches of one part and prints a table, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["trials", "nodes", "concurrency", "one"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=20.0, help="of a trial, for `nodes`")
    parser.add_argument("--slots", type=int, nargs="+", default=[256, 1000])
    parser.add_argument("--options", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "one":
        warnings.simplefilter("ignore")
        print(json.dumps(run_search(*json.loads(args.options))))
        return
    print("trials  slots  nodes   seconds   trials/s   CPU ms a trial   share     MB")
    if args.part == "trials":
        found = [measured(size, 16) for size in args.sizes]
        cost, memory = found[-1]["ms"] / found[0]["ms"], found[-1]["megabytes"] - found[0]["megabytes"]
        print(f"ratio of the cost of a trial: {cost:.2f}, further memory: {memory:.0f} MB")
    elif args.part == "nodes":
        rates = []
        for nodes in args.nodes:
            slots = nodes * SLOTS_OF_A_NODE
            samples = ROUNDS * slots
            rates.append(samples / measured(samples, slots, nodes, args.seconds, "none")["seconds"] / nodes)
        print(f"ratios of trials/s to linear: {', '.join(f'{rate / rates[0]:.2f}' for rate in rates)}")
    else:
        found = [measured(2 * slots, slots) for slots in args.slots]
        ends = [f"{slots} at {one['seconds'] / 2:.0f} s" for slots, one in zip(args.slots, found, strict=True)]
        print(f"the driver keeps up with trials that take at least: {', '.join(ends)}")
        print(f"ratio of the cost of a trial: {found[-1]['ms'] / found[0]['ms']:.2f}")


if __name__ == "__main__":
    main()
