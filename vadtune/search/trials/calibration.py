"""Measures on the device how many configurations should train as one stack."""

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
_PROCESS_SECONDS = 2.0  # CPU time to start the process of a trial


def calibrate(drawn: Sequence[TrialConfig], train: MaskedRows, device: str, *, samples: int, cores: int) -> int:
    """Times an epoch of packs of growing size and returns the size with the lowest estimated time of the search.

    Args:
        drawn: Configurations drawn from the space; one stands for all, preferably one that trains by batches.
        train: The training rows.
        device: ``cpu`` or ``cuda``.
        samples: Number of trials of the search.
        cores: Number of cores of Ray. A pack costs the processes of its trials, and on a CPU the core they share.
    """
    closed_form = [config.model.closed_form for config in drawn]
    config = drawn[closed_form.index(False) if False in closed_form else 0]
    epochs = samples * config.train.epochs * _SHARE_TRAINED
    clock = time.thread_time if device == "cpu" else time.perf_counter  # thread time does not depend on other processes
    costs, timings = {}, []
    for p in _CALIBRATED:
        if p > min(samples, 4 if device == "cpu" else samples):  # a gain on a CPU shows at 4
            break
        population = Population([config] * p, train, device)
        population.train_epoch()
        start = clock()
        population.train_epoch()
        seconds = (clock() - start) / p
        timings.append(f"{p} at once {1e3 * seconds:.1f} ms")
        workers = 1 if device != "cpu" else cores if p == 1 else max(1, cores - 1)
        processes = workers if p == 1 else workers * (p + 1)
        costs[p] = epochs * seconds / workers + processes * _PROCESS_SECONDS / cores
    chosen = min(costs, key=lambda p: costs[p])
    logger.info(
        "calibration on %s, an epoch of one configuration: %s; search.pack %d", device, ", ".join(timings), chosen
    )
    return chosen
