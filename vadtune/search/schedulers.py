"""When a trial is stopped, and at which epochs it reports.

To add a scheduler: one factory here, one line in SCHEDULERS, its name in config.SCHEDULERS.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from vadtune.config import SearchConfig

EPOCH = "epoch"
"""The result key that counts a trial's budget."""


def _grace(search: SearchConfig, epochs: int) -> int:
    """Epochs before a trial may be stopped: by default a ninth, where the ranking is already close to the final one."""
    return search.grace_epochs or math.ceil(epochs / 9)


def _asha(search: SearchConfig, epochs: int) -> TrialScheduler:
    # Beyond the last epoch, so that a finished trial ends as finished and not as stopped.
    return ASHAScheduler(
        time_attr=EPOCH,
        max_t=epochs + 1,
        grace_period=_grace(search, epochs),
        reduction_factor=search.reduction_factor,
    )


def _hyperband(search: SearchConfig, epochs: int) -> TrialScheduler:
    return HyperBandScheduler(time_attr=EPOCH, max_t=epochs + 1, reduction_factor=search.reduction_factor)


def _median(search: SearchConfig, epochs: int) -> TrialScheduler:
    return MedianStoppingRule(time_attr=EPOCH, grace_period=_grace(search, epochs), min_samples_required=3)


SCHEDULERS: dict[str, Callable[[SearchConfig, int], TrialScheduler]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "none": lambda search, epochs: FIFOScheduler(),
}


def report_epochs(search: SearchConfig, epochs: int) -> list[int]:
    """Returns the epochs at which a trial is validated and reports, ascending; the last is ``epochs``.

    Under ASHA these are the rungs, where it decides; validating elsewhere would only cost time. Other schedulers, and
    none, get ten reports. ``search.report`` adds every N-th epoch.
    """
    due = {epochs}
    if search.scheduler == "asha":
        rung = _grace(search, epochs)
        while rung < epochs:
            due.add(rung)
            rung *= search.reduction_factor
    elif search.report == "rungs":
        due.update(range(max(1, epochs // 10), epochs, max(1, epochs // 10)))
    if search.report != "rungs":
        due.update(range(search.report, epochs, search.report))
    return sorted(due)
