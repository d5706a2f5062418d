"""Places trials: each in its own process, or stacked in packs, one for each GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune

from vadtune import native
from vadtune.config import SearchFile, TrialConfig
from vadtune.data import IncompleteDataset
from vadtune.search.algorithms.samplers import sample_count
from vadtune.search.algorithms.space import draw_configurations
from vadtune.search.driver.resources import resources_of
from vadtune.search.trials.packed_trial import PackedTrial
from vadtune.search.trials.trainable import TrainTrial

logger = logging.getLogger(__name__)

_DEFAULT_GPU_PACK = 64
_DRAWN = 16  # configurations to judge a space by


def pack_size(search: SearchFile, dataset: IncompleteDataset, cores: int | None) -> int:
    """Returns how many trials train as one stack: ``search.pack``, or for 'auto' a size measured on the device.

    Nothing is measured, and PyTorch is not imported, where a CPU trains the configurations one by one anyway.

    Args:
        search: The search file.
        dataset: Its data.
        cores: Number of cores of a Ray that is being started; None to ask the Ray that runs.
    """
    if search.search.pack != "auto":
        return int(search.search.pack)
    on_gpu = bool(search.search.gpus_per_trial and _gpus(cores))
    drawn = [search.trial_config(sample) for sample in draw_configurations(search, _DRAWN)]
    if not on_gpu and all(map(trained_one_by_one, drawn)):
        logger.info("search.pack 1: on a CPU these configurations are trained one by one, packed or not")
        native.announce_compilation()
        return 1
    import torch

    from vadtune.core.threads import use_threads
    from vadtune.search.trials.calibration import calibrate

    if on_gpu and not torch.cuda.is_available():
        logger.info("search.pack %d: the GPUs are on other machines", _DEFAULT_GPU_PACK)
        return _DEFAULT_GPU_PACK
    device, count, threads = "cuda" if on_gpu else "cpu", sample_count(search), torch.get_num_threads()
    use_threads(max(1, int(search.search.cpus_per_trial)))
    try:
        ray_cores = cores or int(ray.cluster_resources().get("CPU", 1))
        return calibrate(drawn, dataset.train, device, samples=count, cores=ray_cores)
    except (RuntimeError, MemoryError) as error:  # such as too little memory; the trial then fails with the reason
        logger.warning("search.pack 1: the calibration failed (%s)", " ".join(str(error).split())[:200])
        return 1
    finally:
        use_threads(threads)


def trained_one_by_one(config: TrialConfig) -> bool:
    """Whether a CPU trains a stack of such configurations one by one: in closed form or by machine code."""
    return config.model.closed_form or native.supports_training(config)


def _gpus(cores: int | None) -> int:
    if cores is None:
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


@contextlib.contextmanager
def place_trials(search: SearchFile, dataset: IncompleteDataset, size: int) -> Iterator[tuple[Any, int]]:
    """Yields the trainable for Tune, with data and resources, and how many trials run at once; needs a running Ray.

    Args:
        search: The search file.
        dataset: Its data.
        size: How many trials train as one stack.
    """
    if size == 1:
        yield _unpacked(search, dataset), _slots(search)
        return
    gpus = int(ray.cluster_resources().get("GPU", 0)) if search.search.gpus_per_trial else 0
    data = [ray.put(dataset.search_data)]
    packs = _packs(search, dataset, data, size, gpus)
    try:
        yield _packed(search, packs, data, size), size * len(packs)
    finally:
        for pack in packs:
            ray.kill(pack)


def _slots(search: SearchFile) -> int:
    """Returns how many unpacked trials can run at once."""
    total = ray.cluster_resources()
    return max(1, min(int(total.get(name, 0) / need) for name, need in resources_of(search.search).items() if need))


def _unpacked(search: SearchFile, dataset: IncompleteDataset) -> Any:
    with_data = tune.with_parameters(
        TrainTrial,
        search=search,
        data=dataset.search_data,
        scaler=dataset.scaler,
        feature_names=dataset.feature_names,
    )
    return tune.with_resources(with_data, resources_of(search.search))


def _packs(search: SearchFile, dataset: IncompleteDataset, data: list[Any], size: int, gpus: int) -> list[Any]:
    """Starts one pack for each GPU, or for each core but one."""
    from vadtune.search.trials.packing import RemotePack  # imports PyTorch, which other searches do without

    cores = int(ray.cluster_resources().get("CPU", 1))
    count = gpus or max(1, cores - 1)
    resources = {"num_cpus": 1 if cores > count else 0, "num_gpus": 1 if gpus else 0}
    remote = ray.remote(RemotePack).options(**resources, max_restarts=-1, max_concurrency=10_000)
    logger.info("%d packs of up to %d trials, on a %s each", count, size, "GPU" if gpus else "core")
    args, device = (search, data, dataset.scaler, dataset.feature_names), "cuda" if gpus else "cpu"
    return [remote.remote(*args, capacity=size, device=device) for _ in range(count)]


def _packed(search: SearchFile, packs: list[Any], data: list[Any], size: int) -> Any:
    """Returns the trainable of packed trials, which share the cores that the packs leave."""
    cores = float(ray.cluster_resources().get("CPU", 1))
    left = cores - len(packs) if cores > len(packs) else cores
    share = min(1.0, max(0.001, int(1000 * left / (size * len(packs))) / 1000))
    with_packs = tune.with_parameters(PackedTrial, search=search, packs=packs, data=data)
    return tune.with_resources(with_packs, {"CPU": share})
