"""What a search needs of the process it runs in: a Ray of its own and a clean way to stop."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, NamedTuple

import ray
from ray import NodeID
from ray._private import ray_constants, services
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.node import Node as RayNode

from vadtune.config import SearchConfig
from vadtune.core.errors import ConfigError, unknown_name
from vadtune.search.cluster.join import Node, grows, nodes, quiet
from vadtune.search.ray_compat import replaced

logger = logging.getLogger(__name__)

_TYPE = "accelerator_type:"
_OBJECT_STORE_BYTES = 512 * 2**20
_PRELOAD, _WORKER = "RAY_preload_python_modules", "vadtune.search.trials.worker"
_NODE_SECONDS = 10.0  # after which Ray looks in its own way
_IDLE_MS = 60_000  # Ray would end idle processes after a second, in the moment in which trials have the cores already
_NEEDLESS = "start_api_server", "start_monitor", "start_log_monitor"


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Collects no garbage during a block that imports a lot: what is imported stays, and to look through it again and
    again takes a second or two."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collected:
            gc.enable()


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Lets Ray start without what one machine has no use for: a dashboard, which without its pages only reports usage,
    an autoscaler, and a reader of logs that go nowhere. Each is a process of its own, and Ray waits for the first.

    Ray looks once a second whether its node is there; here it looks more often.
    """

    def get_node(look: Any, gcs_address: str, node_id: str) -> Any:
        gcs, end = services.GcsClient(address=gcs_address), time.monotonic() + _NODE_SECONDS
        while NodeID.from_hex(node_id) not in gcs.get_all_node_info() and time.monotonic() < end:
            time.sleep(0.05)
        return look(gcs_address, node_id)

    with contextlib.ExitStack() as stack:
        for name in _NEEDLESS:
            stack.enter_context(replaced(RayNode, name, lambda start, node, **options: None))
        stack.enter_context(replaced(services, "get_node", get_node))
        yield


@contextlib.contextmanager
def local_ray(preload: str = "") -> Iterator[bool]:
    """Starts a local Ray that listens on loopback only, without dashboard; one that runs already is used and left.

    Args:
        preload: A module that the processes for trials import as soon as Ray has started them, of which there is one
            for every core.

    Yields:
        Whether it was started here.
    """
    quiet()
    if ray.is_initialized():
        yield False
        return
    # Told 127.0.0.1, Ray would still look up the machine's network address and listen there, if it may join clusters.
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[_PRELOAD] = preload
    with _lean():
        ray.init(
            address="local",
            num_cpus=_cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _system_config={"idle_worker_killing_time_threshold_ms": _IDLE_MS},
        )
    del os.environ[_PRELOAD]
    try:
        yield True
    finally:
        ray.shutdown()


class PendingRay(NamedTuple):
    """A Ray that is being started.

    Attributes:
        cores: How many it will have, if it is this machine's own; None if there was one already.
        ready: Waits for it, and returns whether it is this machine's own.
    """

    cores: int | None
    ready: Callable[[], bool]


@contextlib.contextmanager
def pending_ray(config: SearchConfig) -> Iterator[PendingRay]:
    """Starts a local Ray, see ``local_ray``, beside what the block does."""
    # Ray starts a process for every core. Those of packed trials are thin, and where there are fewer trials than cores
    # most would never be needed.
    own_processes = not config.gpus_per_trial and config.pack in ("auto", 1)
    all_needed = config.cpus_per_trial <= 1 and (config.samples or _cores()) >= _cores()
    preload = _WORKER if own_processes and all_needed else ""
    # Ray's processes are to die with what started them, which is the thread: it must outlive them.
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as stack:
        cores = None if ray.is_initialized() else _cores()
        started = thread.submit(stack.enter_context, local_ray(preload))
        yield PendingRay(cores, started.result)


def check_resources(config: SearchConfig) -> None:
    """Makes sure that a trial fits on a node; Ray would wait for ever for what it does not have.

    Raises:
        ConfigError: A trial asks for more than any node has, of a cluster that does not grow.
    """
    there = nodes() if ray.is_initialized() else [_this_machine(config)]
    asked = resources_of(config)
    problems = [
        f"search.{key}: must be at most the {most:g} {kind}s there are, got {asked[kind]:g}; lower it"
        for key, kind in (("cpus_per_trial", "CPU"), ("gpus_per_trial", "GPU"))
        if asked[kind] > (most := max((node.resources.get(kind, 0) for node in there), default=0))
    ]
    if config.accelerator_type:
        types = {name.removeprefix(_TYPE) for node in there for name in node.resources if name.startswith(_TYPE)}
        if config.accelerator_type not in types:
            problems.append(f"search.accelerator_type: {unknown_name('type', config.accelerator_type, types)}")
    if problems and grows():
        logger.warning("no node has what a trial asks for, waiting for the cluster to grow: %s", "; ".join(problems))
    elif problems:
        raise ConfigError(problems)


def resources_of(config: SearchConfig) -> dict[str, float]:
    """Returns what Ray is to set aside for a trial."""
    resources = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    # Ray gives each node a little of a resource named after its accelerator, to be asked for in crumbs.
    return resources | ({f"{_TYPE}{config.accelerator_type}": 0.001} if config.accelerator_type else {})


def _this_machine(config: SearchConfig) -> Node:
    gpus = 0
    if config.gpus_per_trial:
        import torch  # takes seconds, for which other searches need not wait here

        gpus = torch.cuda.device_count()
    kind = get_accelerator_manager_for_resource("GPU").get_current_node_accelerator_type()
    resources = {"CPU": float(_cores()), "GPU": float(gpus)}
    return Node("", "127.0.0.1", resources | ({f"{_TYPE}{kind}": 1.0} if kind else {}))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Makes the first Ctrl-C (or SIGTERM) stop Tune cleanly: it saves its state and returns.

    Tune listens to SIGUSR1 for that; taking its way keeps the knowledge of an interruption here. What comes before Tune
    listens is told it again later (see SearchCallback). A second Ctrl-C interrupts the process as usual.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        logger.info("stopping: saving the state of the search (Ctrl-C again to quit at once)")
        os.kill(os.getpid(), signal.SIGUSR1)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: lambda number, frame: None}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        del os.environ["TUNE_DISABLE_SIGINT_HANDLER"]
