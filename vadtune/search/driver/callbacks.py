"""Tune callbacks: log trials to MLflow, update the progress display, end hanging trials and spent searches."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from vadtune.core.errors import SearchError, TrialDiverged
from vadtune.core.files import FULL, is_almost_full
from vadtune.search.algorithms.schedulers import EPOCH, report_epochs, trial_number
from vadtune.search.driver.progress import duration
from vadtune.search.driver.session import SESSIONS, Session
from vadtune.search.ray_compat import actor_of, check_effect
from vadtune.search.resume.retries import MAX_RETRIES, RECOVERY
from vadtune.search.resume.snapshot import saved_at

logger = logging.getLogger(__name__)

_SHARED: dict[Any, Any] = {}  # resources that trials ask for, by themselves
_LONG_TRIAL = 20.0  # seconds
_METRICS = ("val_", "train_", "inference_")
_FULL = tuple(os.strerror(number) for number in FULL)
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemory", "out of memory", "not enough memory", "allocate memory")


def short_name(trial: Trial) -> str:
    """Returns the name of a trial, such as trial-0007; a resume does not change it."""
    return f"trial-{trial_number(trial):04d}"


class SearchCallback(Callback):
    """Logs the trials of the search with the unique name ``run`` and ends those that hang."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._reconciled = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_run": self._run, "_reconciled": False}

    def get_state(self) -> dict[str, Any] | None:
        """Returns the state that Tune saves for a resume."""
        rungs = [dict(recorded) for recorded in self._session.rungs]
        seconds = {"gpu_seconds": self._session.gpus.seconds, "seconds": self._session.seconds}
        state: dict[str, Any] = {**seconds, "rungs": rungs}
        if (order := self._session.order) is not None:
            state["order"] = order.state()
            last = next((recorded for recorded in rungs if order.ending in recorded), {})
            last.pop(order.ending or "", None)  # a trial that is ending will report again
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the saved state."""
        self._session.gpus.seconds += state["gpu_seconds"]
        self._session.add_time_before(state.get("seconds", 0.0))
        if self._session.is_spent:
            logger.warning("its budget is used up, so that it ends at once; enlarge search.time_budget or .gpu_hours")
        self._session.rungs = state.get("rungs", [])
        if self._session.order is not None:
            self._session.order.restore(state.get("order", {}))

    @property
    def _session(self) -> Session:
        return SESSIONS[self._run]

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Counts GPU time and ends hanging trials; in the first step also updates MLflow to the restored trials."""
        if self._session.signals:  # received before Tune listened
            os.kill(os.getpid(), signal.SIGUSR1)
        self._reconcile(trials)
        self._session.gpus.hold(self._gpus_held(trials))
        self._end_hanging(trials)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Starts the MLflow run of a trial."""
        self._session.alive[trial.trial_id] = time.monotonic()
        self._start(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Logs the scores that a trial reports."""
        self._session.alive[trial.trial_id] = time.monotonic()
        self._report(trial, result)
        self._estimate(result)
        if RECOVERY in result:
            logger.warning("%s %s", short_name(trial), result[RECOVERY])
            self._session.tracker.tag_trial(trial.trial_id, {"vadtune.recovery": result[RECOVERY]})

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records a sign of life."""
        self._session.alive[trial.trial_id] = time.monotonic()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Logs a retry, maybe of a trial that has not started. Raises SearchError if nothing decided on the retry."""
        check_effect("bounded_retries")
        retry = f"{min(trial.num_failures, MAX_RETRIES)} of {MAX_RETRIES}"
        reason = (self._session.hung.get(trial.trial_id) or _reason(trial)).removeprefix("error: ")
        logger.warning("%s is retried (%s): %s", short_name(trial), retry, reason)
        if any(text in reason for text in _FULL) and is_almost_full(self._session.tracker.folder):
            self._session.full = reason
            self._session.signals.append(signal.SIGUSR1)  # stops the search, as Ctrl-C does
            os.kill(os.getpid(), signal.SIGUSR1)
        if trial.trial_id not in self._session.started:
            self._start(trial)
        self._session.tracker.tag_trial(trial.trial_id, {"vadtune.retries": f"{retry}, the last because {reason}"})

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends the MLflow run of a trial that finished or was stopped."""
        self._end(trial)
        self._spend(trial)
        _shrink(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends the MLflow run of a trial that failed, possibly before it started."""
        if trial.trial_id not in self._session.started:
            self._start(trial)
        self._end(trial)
        self._spend(trial)
        _shrink(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Refreshes the display and frees disk space. Raises SearchError if Tune does not save its state."""
        check_effect("atomic_snapshots")
        if self._session.spent:
            self._session.keep_last_models(saved_at(self._session.tracker.folder))
        if self._session.display.due():
            self._show(trials)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Ends the MLflow runs of unfinished trials; a resume reopens those that were interrupted."""
        if not self._session.known <= {trial.trial_id for trial in trials}:
            return
        self._reconcile(trials)  # a search restored when complete takes no step
        for trial in trials:
            if trial.trial_id in self._session.ended:
                continue
            if self._session.signals:
                self._finish(trial, "KILLED", f"interrupted at epoch {_epoch(trial)}")
            elif _epoch(trial) >= self._session.search.epochs:  # its last checkpoint was being written
                self._end(trial)
            else:
                budget = "GPU-hours" if self._session.gpus.is_spent else "time budget"
                self._record(trial, "KILLED", f"stopped by {budget} at epoch {_epoch(trial)}")
                self._spend(trial)
        self._show(trials)

    def _reconcile(self, trials: list[Trial]) -> None:
        if self._reconciled:
            return
        self._reconciled = True
        known = {trial.trial_id for trial in trials}
        if not self._session.known <= known:  # Tune would silently start from the beginning
            raise SearchError(
                f"{self._run}: Ray Tune must know the {len(self._session.known)} trials it had, and could not read "
                "them; nothing was changed, resume it with the versions it was started with"
            )
        self._session.tracker.forget_trials_except(known)
        for trial in trials:
            end = self._session.tracker.ends.get(trial.trial_id)  # as it was logged, by a budget for example
            has_begun = bool(trial.last_result or end)
            if trial.status == Trial.ERROR or (trial.status == Trial.TERMINATED and has_begun):
                self._start(trial)
                self._report(trial, trial.last_result)
                self._end(trial, end)
        self._session.ended_before = len(self._session.ended)

    def _start(self, trial: Trial) -> None:
        params = self._session.search.trial_config(trial.config).flat()
        self._session.started.add(trial.trial_id)
        self._session.tracker.start_trial(trial.trial_id, short_name(trial), params)

    def _report(self, trial: Trial, result: dict[str, Any]) -> None:
        if EPOCH not in result:
            return
        metrics = {name: result[name] for name in result if name.startswith(_METRICS)}
        self._session.tracker.log_metrics(trial.trial_id, metrics, epoch=int(result[EPOCH]))
        self._session.scores[short_name(trial)] = float(result[self._session.search.search.metric])

    def _estimate(self, result: dict[str, Any]) -> None:
        """Logs how long a whole trial takes, by the first report of the search, unless it is short."""
        epochs = self._session.search.epochs
        if self._session.estimated or not 0 < int(result.get(EPOCH, 0)) < epochs:
            return
        self._session.estimated = True
        training = float(result["train_seconds"]) / int(result[EPOCH]) * epochs
        scoring = float(result["inference_seconds"]) * len(report_epochs(self._session.search.search, epochs))
        if training + scoring >= _LONG_TRIAL:
            parts = duration(training + scoring), duration(training), duration(scoring)
            logger.info(
                "a trial of all epochs takes about %s by the first report: %s of training, %s of scoring", *parts
            )

    def _end(self, trial: Trial, logged: str | None = None) -> None:
        if trial.status == Trial.ERROR:
            reason = self._session.hung.get(trial.trial_id) or _reason(trial)
            self._session.scores.pop(short_name(trial), None)
            if not reason.startswith("diverged"):
                self._session.failures[short_name(trial)] = reason
            self._record(trial, "FAILED", reason)
        elif _epoch(trial) >= self._session.search.epochs:
            self._record(trial, "FINISHED", "completed")
        else:
            by = self._session.search.search.scheduler
            self._record(trial, "KILLED", logged or f"stopped by {by} at epoch {_epoch(trial)}")

    def _spend(self, trial: Trial) -> None:
        if trial.checkpoint and trial.checkpoint.filesystem.type_name == "local":
            self._session.spent[Path(trial.checkpoint.path)] = time.time()

    def _gpus_held(self, trials: list[Trial]) -> float:
        """Returns how many GPUs this search reserves: those of its packs, or of the trials that run."""
        each: float = self._session.search.search.gpus_per_trial
        if not each or not trials:
            return 0.0
        if "GPU" not in trials[0].placement_group_factory.required_resources:
            return float(self._session.pack_gpus)
        return each * sum(1 for trial in trials if trial.status == Trial.RUNNING)

    def _end_hanging(self, trials: list[Trial]) -> None:
        """Kills the workers of trials that have not reported for too long, without a retry."""
        limit = self._session.search.search.trial_timeout_s
        if limit is None:
            return
        for trial in trials:
            last = self._session.alive.get(trial.trial_id)
            actor = actor_of(trial)
            if trial.status != Trial.RUNNING or actor is None or last is None or trial.trial_id in self._session.hung:
                continue
            if self._session.order is not None and self._session.order.is_holding(trial.trial_id):
                continue
            if time.monotonic() - last > limit:
                text = f"hung: nothing reported within {limit:g} seconds (search.trial_timeout)"
                self._session.hung[trial.trial_id] = f"error: {text}, last epoch {_epoch(trial)}"
                trial.max_failures = 0
                ray.kill(actor)

    def _record(self, trial: Trial, status: str, end: str) -> None:
        if trial.trial_id in self._session.started:
            self._session.ended[trial.trial_id] = end
        self._finish(trial, status, end)

    def _finish(self, trial: Trial, status: str, end: str) -> None:
        if trial.trial_id in self._session.started:  # otherwise it has no MLflow run
            checkpoint = _checkpoint_path(trial, self._session.tracker.folder)
            self._session.tracker.end_trial(trial.trial_id, status=status, end=end, checkpoint=checkpoint)

    def _show(self, trials: list[Trial]) -> None:
        running = 0 if self._session.signals else sum(trial.status == Trial.RUNNING for trial in trials)
        self._session.display.show(len(self._session.ended), self._session.total, self._session.line(running))


class BudgetStopper(Stopper):
    """Stops the search with the unique name ``run`` when its GPU-hours or its time are used up."""

    def __init__(self, run: str) -> None:
        self._run = run

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns False: single trials are not stopped."""
        return False

    def stop_all(self) -> bool:
        """Returns whether a budget is used up; results that have arrived count first."""
        session = SESSIONS[self._run]
        return session.is_spent and not (session.order is not None and session.order.count_all())


def _checkpoint_path(trial: Trial, folder: Path) -> str:
    """Returns the path of a trial's last checkpoint, relative to the run folder, or its URI; empty without one."""
    if not trial.checkpoint:
        return ""
    kind = trial.checkpoint.filesystem.type_name
    if kind != "local":
        scheme = {"gcs": "gs"}.get(kind, kind)
        return f"{scheme}://{trial.checkpoint.path}"
    path = Path(trial.checkpoint.path)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _shrink(trial: Trial) -> None:
    """Frees what Tune keeps of an ended trial and nobody reads: 57 kB of 65 kB, and most of its part of a snapshot.

    Each number that a trial reports has a running mean over 5 and over 10 reports, its last result has all that Tune
    adds, with keys of its own, and each trial has its own copy of the resources that all ask for.
    """
    trial.placement_group_factory = _SHARED.setdefault(trial.placement_group_factory, trial.placement_group_factory)
    trial.evaluated_params = trial.config
    trial.metric_analysis.clear()
    trial.metric_n_steps.clear()
    checkpoints = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    for result in (trial.last_result, *(checkpoint.metrics for checkpoint in checkpoints)):
        kept = {sys.intern(name): result[name] for name in result if name == EPOCH or name.startswith(_METRICS)}
        result.clear()
        result.update(kept)


def _epoch(trial: Trial) -> int:
    """Returns the last epoch that a trial reported; 0 before its first report."""
    return int(trial.last_result.get(EPOCH, 0))


def _reason(trial: Trial) -> str:
    """Returns why a trial failed, on one line: ``diverged: ...`` or ``error: ...``."""
    local = Path(trial.pickled_error_file or "")  # Tune copies it to the trial's folder only after this callback
    try:
        error: Any = pickle.loads(local.read_bytes()) if local.is_file() else trial.get_pickled_error()
    except (OSError, EOFError, pickle.UnpicklingError) as damage:
        return f"error: unknown, the file that said so cannot be read ({damage})"
    cause = getattr(error, "cause", None) or error
    text = " ".join(str(cause).split())
    if isinstance(cause, TrialDiverged) or "TrialDiverged" in text:
        return text[text.find("diverged:") :] if "diverged:" in text else f"diverged: {text}"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "error: its worker died, or the node it ran on"
    if isinstance(error, RayActorError):
        text = str(error).strip().splitlines()[-1]  # the last line of the traceback: why the worker could not start
    else:
        text = f"{type(cause).__name__}: {text}"
    if any(sign in text for sign in _OUT_OF_MEMORY):
        text = f"out of memory, lower the sizes that model.* and train.batch_size may take: {text}"
    return f"error: {text}"[:500]
