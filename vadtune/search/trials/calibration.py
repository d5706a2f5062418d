"""How many configurations are best trained as one stack: measured on the device, before the search."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from vadtune.config import TrialConfig
from vadtune.data import MaskedRows
from vadtune.training.population import Population

logger = logging.getLogger(__name__)

_CALIBRATED = (1, 4, 16, 64)
_SHARE_TRAINED = 0.5  # of all epochs, under a scheduler that stops trials early
_PROCESS_SECONDS = 2.0  # of a core, to start a trial's process


def calibrate(drawn: Sequence[TrialConfig], train: MaskedRows, device: str, *, samples: int, cores: int) -> int:
    """Measures an epoch of packs of growing size and returns the size with which the search should end first.

    One of the configurations drawn from the space stands for all, one that takes batches if there is any. What a larger
    pack saves is held against what it costs: the processes of its thin trials, and on a CPU the core that they share.
    """
    solved = [config.model.closed_form for config in drawn]
    config = drawn[solved.index(False) if False in solved else 0]
    epochs = samples * config.train.epochs * _SHARE_TRAINED
    clock = time.thread_time if device == "cpu" else time.perf_counter  # the former whatever else goes on
    costs, told = {}, []
    for p in _CALIBRATED:
        if p > min(samples, 4 if device == "cpu" else samples):  # what a CPU gains shows at once
            break
        population = Population([config] * p, train, device)
        population.train_epoch()
        start = clock()
        population.train_epoch()
        seconds = (clock() - start) / p
        told.append(f"{p} at once {1e3 * seconds:.1f} ms")
        workers = 1 if device != "cpu" else cores if p == 1 else max(1, cores - 1)
        processes = workers if p == 1 else workers * (p + 1)
        costs[p] = epochs * seconds / workers + processes * _PROCESS_SECONDS / cores
    chosen = min(costs, key=lambda p: costs[p])
    logger.info("calibration on %s, an epoch of one configuration: %s; search.pack %d", device, ", ".join(told), chosen)
    return chosen
