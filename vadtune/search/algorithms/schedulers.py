"""When a trial is stopped, and at which epochs it reports.

To add a scheduler: one factory here, one line in SCHEDULERS, its name in config.SCHEDULERS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from vadtune.config import SearchConfig, SearchFile

EPOCH = "epoch"
"""The result key that counts a trial's budget."""


def _grace(search: SearchConfig, epochs: int) -> int:
    """Epochs before a trial may be stopped: by default a ninth, where the ranking is already close to the final one."""
    return search.grace_epochs or math.ceil(epochs / 9)


class AshaSkippingClosedForm(ASHAScheduler):
    """ASHA among the trials that take their time.

    A linear decoder that is solved is at its end before the first decision. It costs next to nothing, and beside it
    networks would be stopped that end better: it is not stopped, and does not count.
    """

    def __init__(self, file: SearchFile) -> None:
        super().__init__(
            time_attr=EPOCH,
            # Beyond the last epoch, so that a finished trial ends as finished and not as stopped.
            max_t=file.epochs + 1,
            grace_period=_grace(file.search, file.epochs),
            reduction_factor=file.search.reduction_factor,
        )
        self._file = file

    def _races(self, trial: Trial) -> bool:
        return not self._file.trial_config(trial.config).model.closed_form

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides about a trial that reports. See TrialScheduler."""
        if not self._races(trial):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Takes note of a trial that ended. See TrialScheduler."""
        if self._races(trial):
            super().on_trial_complete(tune_controller, trial, result)
        else:
            self.on_trial_remove(tune_controller, trial)


def _hyperband(file: SearchFile) -> TrialScheduler:
    return HyperBandScheduler(time_attr=EPOCH, max_t=file.epochs + 1, reduction_factor=file.search.reduction_factor)


def _median(file: SearchFile) -> TrialScheduler:
    grace = _grace(file.search, file.epochs)
    return MedianStoppingRule(time_attr=EPOCH, grace_period=grace, min_samples_required=3)


SCHEDULERS: dict[str, Callable[[SearchFile], TrialScheduler]] = {
    "asha": AshaSkippingClosedForm,
    "hyperband": _hyperband,
    "median": _median,
    "none": lambda file: FIFOScheduler(),
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


def next_report(due: Sequence[int], epoch: int) -> int:
    """Returns the first of the epochs at which a report is due that comes after an epoch; the last, if none does."""
    return next((report for report in due if report > epoch), due[-1])
