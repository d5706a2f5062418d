"""Places trials: each in its own process, or stacked in packs, one for each GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune

from vadtune import native
from vadtune.config import SearchConfig, SearchFile, parse_search
from vadtune.search.algorithms.logical_order import LogicalOrder
from vadtune.search.algorithms.samplers import sample_count
from vadtune.search.algorithms.trial_clock import trial_clock
from vadtune.search.driver.resources import resources_of
from vadtune.search.trials.packed_trial import PackedTrial
from vadtune.search.trials.trainable import TrainTrial
from vadtune.search.trials.trial_data import TrialData

logger = logging.getLogger(__name__)

_GPU_PACK = 64  # trials of a pack on a GPU; a pack halves itself when memory runs out


def pack_size(search: SearchFile, cores: int | None) -> int:
    """Returns how many trials train as one stack: ``search.pack``; for 'auto' 1 on a CPU and 64 at most on a GPU.

    Args:
        search: The search file.
        cores: Number of cores of a Ray that is being started; None to ask the Ray that runs.
    """
    if search.search.pack != "auto":
        return int(search.search.pack)
    if search.search.gpus_per_trial and _gpus(cores):
        size = min(_GPU_PACK, sample_count(search) or _GPU_PACK)
        logger.info("search.pack %d: a GPU trains configurations of one shape together", size)
        return size
    logger.info("search.pack 1: a CPU trains configurations one by one")
    native.announce_compilation_by_workers(search)
    return 1


def with_order(search: SearchFile, size: int, cores: int | None) -> SearchFile:
    """Returns a search file that says in which order results count, and how many trials a logical order runs at once.

    Args:
        search: The search file.
        size: How many trials train as one stack.
        cores: Number of cores of a Ray that is being started; None for the Ray that runs.
    """
    settings = search.search
    suited = (cores is not None and size == 1) or settings.concurrency is not None
    suited = suited and settings.scheduler != "hyperband"
    order = settings.order or ("logical" if suited else "arrival")
    section = {**(search.tree.get("search") or {}), "order": order}
    if order == "logical":
        section["concurrency"] = settings.concurrency or (size if size > 1 else _slots(settings, cores))
    return parse_search({**search.tree, "search": section})


def order_of(search: SearchFile, data: TrialData) -> LogicalOrder | None:
    """Returns the order in which the results of a search count; None to take them as they arrive."""
    if search.search.order != "logical" or search.search.concurrency is None:
        return None
    return LogicalOrder(
        search.search.concurrency, trial_clock(search, data.train_rows, data.inferred_rows, len(data.feature_names))
    )


def _gpus(cores: int | None) -> int:
    if cores is None:
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


@contextlib.contextmanager
def place_trials(search: SearchFile, data: TrialData, size: int) -> Iterator[tuple[Any, int]]:
    """Yields the trainable for Tune, with data and resources, and how many trials run at once; needs a running Ray.

    Args:
        search: The search file.
        data: Its data.
        size: How many trials train as one stack.
    """
    if size == 1:
        slots = _slots(search.search)
        yield _unpacked(search, data, min(1.0, slots / (search.search.concurrency or slots))), slots
        return
    gpus = int(ray.cluster_resources().get("GPU", 0)) if search.search.gpus_per_trial else 0
    reference = [data.place()]
    packs = _packs(search, data, reference, size, gpus)
    try:
        yield _packed(search, packs, reference, size), size * len(packs)
    finally:
        for pack in packs:
            ray.kill(pack)


def _slots(settings: SearchConfig, cores: int | None = None) -> int:
    """Returns how many unpacked trials can run at once, of a running Ray or of one that is being started."""
    available = ray.cluster_resources().get("CPU", 1) if cores is None else cores
    counts = [int(available / settings.cpus_per_trial)]
    if settings.gpus_per_trial:  # a trial takes part of one GPU, or whole ones
        gpus, need = _gpus(cores), settings.gpus_per_trial
        counts.append(gpus * int(1 / need) if need < 1 else int(gpus / need))
    return max(1, min(counts))


def _unpacked(search: SearchFile, data: TrialData, share: float) -> Any:
    with_data = tune.with_parameters(
        TrainTrial, search=search, data=data.place(), scaler=data.scaler, feature_names=data.feature_names
    )
    # More trials at once than there are cores share these.
    return tune.with_resources(with_data, {name: share * need for name, need in resources_of(search.search).items()})


def _packs(search: SearchFile, data: TrialData, reference: list[Any], size: int, gpus: int) -> list[Any]:
    """Starts one pack for each GPU, or for each core but one."""
    from vadtune.search.trials.packing import RemotePack  # imports PyTorch, which other searches do without

    cores = int(ray.cluster_resources().get("CPU", 1))
    count = gpus or max(1, cores - 1)
    resources = {"num_cpus": 1 if cores > count else 0, "num_gpus": 1 if gpus else 0}
    remote = ray.remote(RemotePack).options(**resources, max_restarts=-1, max_concurrency=10_000)
    logger.info("%d packs of up to %d trials, on a %s each", count, size, "GPU" if gpus else "core")
    args, device = (search, reference, data.scaler, data.feature_names), "cuda" if gpus else "cpu"
    return [remote.remote(*args, capacity=size, device=device) for _ in range(count)]


def _packed(search: SearchFile, packs: list[Any], data: list[Any], size: int) -> Any:
    """Returns the trainable of packed trials, which share the cores that the packs leave."""
    cores = float(ray.cluster_resources().get("CPU", 1))
    left = cores - len(packs) if cores > len(packs) else cores
    share = min(1.0, max(0.001, int(1000 * left / (size * len(packs))) / 1000))
    with_packs = tune.with_parameters(PackedTrial, search=search, packs=packs, data=data)
    return tune.with_resources(with_packs, {"CPU": share})
