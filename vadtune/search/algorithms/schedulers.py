"""Schedulers: they stop trials early, and decide at which epochs trials report.

To add a scheduler: one factory here, one line in SCHEDULERS, its name in config.SCHEDULERS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from vadtune.config import SearchConfig, SearchFile

EPOCH = "epoch"
"""The result key that counts a trial's budget."""


def trial_number(trial: Trial) -> int:
    """Returns the number of a trial, from 1 in the order of proposal; a resume does not change it."""
    return int(trial.experiment_tag.partition("_")[0])  # followed by the configuration


class _FirstWaiting(TrialScheduler):
    """Runs the waiting trial that was proposed first; Tune's schedulers look through all trials at every step."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Returns the trial to run next. See TrialScheduler."""
        ranks = {Trial.PENDING: 0, Trial.PAUSED: 1}
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status in ranks]
        return min(waiting, key=lambda trial: (ranks[trial.status], trial_number(trial)), default=None)


class Fifo(_FirstWaiting, FIFOScheduler):
    """Stops no trial."""


class AshaSkippingClosedForm(_FirstWaiting, ASHAScheduler):
    """ASHA that neither stops nor counts trials with a linear decoder in closed form.

    Such a trial has its final score before the first decision and costs little; ranked against it, ASHA would stop
    networks that end better.
    """

    def __init__(self, file: SearchFile) -> None:
        super().__init__(
            time_attr=EPOCH,
            # Beyond the last epoch, so that a finished trial does not end as stopped.
            max_t=file.epochs + 1,
            grace_period=file.search.grace(file.epochs),
            reduction_factor=file.search.reduction_factor,
        )
        self._file = file

    def _is_ranked(self, trial: Trial) -> bool:
        return not self._file.trial_config(trial.config).model.closed_form

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides whether a trial that reports continues. See TrialScheduler."""
        if not self._is_ranked(trial):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Records the end of a trial. See TrialScheduler."""
        if self._is_ranked(trial):
            super().on_trial_complete(tune_controller, trial, result)
        else:
            self.on_trial_remove(tune_controller, trial)


class Hyperband(HyperBandScheduler):
    """HyperBand whose brackets do not wait for the trials that had ended before a resume."""

    def __init__(self, file: SearchFile) -> None:
        super().__init__(time_attr=EPOCH, max_t=file.epochs + 1, reduction_factor=file.search.reduction_factor)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Puts a trial into a bracket. See TrialScheduler."""
        if not trial.is_finished():
            super().on_trial_add(tune_controller, trial)


def _median(file: SearchFile) -> TrialScheduler:
    grace = file.search.grace(file.epochs)
    return MedianStoppingRule(time_attr=EPOCH, grace_period=grace, min_samples_required=3)


SCHEDULERS: dict[str, Callable[[SearchFile], TrialScheduler]] = {
    "asha": AshaSkippingClosedForm,
    "hyperband": Hyperband,
    "median": _median,
    "none": lambda file: Fifo(),
}


def report_epochs(search: SearchConfig, epochs: int) -> list[int]:
    """Returns the epochs at which a trial is validated and reports, ascending; the last is ``epochs``.

    Under ASHA these are its rungs; otherwise about ten. ``search.report`` adds every N-th epoch.
    """
    due = {epochs}
    if search.scheduler == "asha":
        rung = search.grace(epochs)
        while rung < epochs:
            due.add(rung)
            rung *= search.reduction_factor
    elif search.report == "rungs":
        due.update(range(max(1, epochs // 10), epochs, max(1, epochs // 10)))
    if search.report != "rungs":
        due.update(range(search.report, epochs, search.report))
    return sorted(due)


def next_report(due: Sequence[int], epoch: int) -> int:
    """Returns the first epoch in ``due`` after ``epoch``; the last one if none is."""
    return next((report for report in due if report > epoch), due[-1])
