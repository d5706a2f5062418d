"""Where trials train: each in a process of its own, or stacked in packs, one for each GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from vadtune import native
from vadtune.config import SearchFile, TrialConfig
from vadtune.data import IncompleteDataset
from vadtune.search.algorithms.draw import draw_configurations
from vadtune.search.algorithms.samplers import sample_count
from vadtune.search.driver.process import resources_of
from vadtune.search.ray_compat import replaced
from vadtune.search.trials.packed_trial import PackedTrial
from vadtune.search.trials.trainable import TrainTrial

logger = logging.getLogger(__name__)

_DEFAULT_GPU_PACK = 64
_DRAWN = 16  # configurations to judge a space by


def pack_size(search: SearchFile, dataset: IncompleteDataset, cores: int | None) -> int:
    """Returns how many trials train as one stack: ``search.pack``; 'auto' measures it, on the device they will use,
    unless it is a CPU on which a stack gains nothing: then there is no PyTorch to wait for.

    Args:
        search: The search file.
        dataset: Its data.
        cores: Of a Ray that is being started; None for those of the one that runs.
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
        logger.info("search.pack %d: the GPUs are on other machines than this one", _DEFAULT_GPU_PACK)
        return _DEFAULT_GPU_PACK
    device, count, threads = "cuda" if on_gpu else "cpu", sample_count(search), torch.get_num_threads()
    use_threads(max(1, int(search.search.cpus_per_trial)))
    try:
        there = cores or int(ray.cluster_resources().get("CPU", 1))
        return calibrate(drawn, dataset.train, device, samples=count, cores=there)
    except (RuntimeError, MemoryError) as error:  # too large for the memory, say: its trial will tell
        logger.warning("search.pack 1: what was to be measured failed (%s)", " ".join(str(error).split())[:200])
        return 1
    finally:
        use_threads(threads)


def trained_one_by_one(config: TrialConfig) -> bool:
    """Returns whether a CPU trains the members of a stack of such configurations one after the other: it solves them,
    or has machine code for them. Without PyTorch."""
    return config.model.closed_form or native.supports_training(config)


def _gpus(cores: int | None) -> int:
    if cores is None:
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


@contextlib.contextmanager
def placed(search: SearchFile, dataset: IncompleteDataset, size: int) -> Iterator[tuple[Any, int]]:
    """Gives what Tune is to run for a trial, with its data and its resources, and for how many trials there is room at
    once. Needs a running Ray.

    Args:
        search: The search file.
        dataset: Its data.
        size: How many trials train as one stack.
    """
    if size == 1:
        yield _alone(search, dataset), _room(search)
        return
    gpus = int(ray.cluster_resources().get("GPU", 0)) if search.search.gpus_per_trial else 0
    data = [ray.put(dataset.search_data)]
    packs = _packs(search, dataset, data, size, gpus)
    try:
        yield _packed(search, packs, data, size), size * len(packs)
    finally:
        for pack in packs:
            ray.kill(pack)


@contextlib.contextmanager
def keep_starting_actors() -> Iterator[None]:
    """Keeps Tune from ending a process that is starting for a trial because another one has become free.

    A process takes longer to start than many a trial to train. Left alone, a search of short trials never gets beyond
    one at a time: whenever the first trial ends, its process is given to the second, and the second's own, not quite
    ready, is ended, again and again.
    """

    def reuse(original: Any, controller: TuneController, trial: Trial) -> bool:
        own = controller._trial_to_actor.get(trial)
        if own is not None and controller._actor_manager.is_actor_started(own):
            return False
        return bool(original(controller, trial))

    with replaced(TuneController, "_maybe_reuse_cached_actor", reuse):
        yield


@contextlib.contextmanager
def parallel_actor_starts(room: int) -> Iterator[None]:
    """Lets Tune start as many processes at once as there is room for.

    Left alone it asks a sampler for a trial only when the process of the one before has started, which takes seconds.
    Once all have started, the next trial is chosen, as ever, when one is about to be needed, and knows most.
    """

    def update(original: Any, controller: TuneController) -> None:
        controller.update_max_pending_trials(max(1, room - len(controller._running_trials)))
        original(controller)

    with replaced(TuneController, "_maybe_update_trial_queue", update):
        yield


@contextlib.contextmanager
def reuse_prestarted_workers() -> Iterator[None]:
    """Lets trials take the processes that a local Ray has started, and prepared, for them.

    Tune asks for processes with environment variables of its own, which are there already where all is one machine,
    and Ray would start others.
    """

    def get(original: Any, cache: _ActorClassCache, trainable: Any) -> Any:
        if trainable not in cache._cache:
            cache._cache[trainable] = ray.remote(trainable)
        return cache._cache[trainable]

    with replaced(_ActorClassCache, "get", get):
        yield


def _room(search: SearchFile) -> int:
    """Returns how many trials of a process each the cluster has room for."""
    there = ray.cluster_resources()
    return max(1, min(int(there.get(name, 0) / need) for name, need in resources_of(search.search).items() if need))


def _alone(search: SearchFile, dataset: IncompleteDataset) -> Any:
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
    from vadtune.search.trials.packing import RemotePack  # PyTorch, which other searches need not wait for here

    cores = int(ray.cluster_resources().get("CPU", 1))
    count = gpus or max(1, cores - 1)
    resources = {"num_cpus": 1 if cores > count else 0, "num_gpus": 1 if gpus else 0}
    remote = ray.remote(RemotePack).options(**resources, max_restarts=-1, max_concurrency=10_000)
    logger.info("%d packs of up to %d trials, on a %s each", count, size, "GPU" if gpus else "core")
    described = dataset.scaler, dataset.feature_names
    device = "cuda" if gpus else "cpu"
    return [remote.remote(search, data, *described, capacity=size, device=device) for _ in range(count)]


def _packed(search: SearchFile, packs: list[Any], data: list[Any], size: int) -> Any:
    """Thin trials that share what cores the packs leave."""
    cores = float(ray.cluster_resources().get("CPU", 1))
    left = cores - len(packs) if cores > len(packs) else cores
    share = min(1.0, max(0.001, int(1000 * left / (size * len(packs))) / 1000))
    with_packs = tune.with_parameters(PackedTrial, search=search, packs=packs, data=data)
    return tune.with_resources(with_packs, {"CPU": share})
