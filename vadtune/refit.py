"""Training chosen configurations anew, on more rows, or on parts of the rows to learn how much each is worth.

Configurations of one shape train as one population, and populations in several processes, one for each core: the
models are small, and threads of one process would wait for each other. Nothing here knows what the rows are for.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from vadtune.config import HoldoutConfig, TrialConfig
from vadtune.data import HeldOut, Part, hold_out
from vadtune.errors import VadtuneError
from vadtune.inference import FittedModel, reconstruct
from vadtune.training import Population, signature

logger = logging.getLogger(__name__)

ROW_FOLDS = 5
_ALONE_STEPS = 4000  # fewer steps than this are done before processes have started


class Fit(NamedTuple):
    """A configuration to train, and the epoch to stop at, which may be before its schedule ends."""

    config: TrialConfig
    epochs: int


class CrossFitted(NamedTuple):
    """Predictions of observed cells by models that saw neither their rows nor them.

    Attributes:
        predictions: Of each fit, float32 (c,); None where it diverged.
        truth: The values of the cells, float32 (c,).
        rows: The row of each cell, (c,).
    """

    predictions: list[np.ndarray | None]
    truth: np.ndarray
    rows: np.ndarray


_Arrays = tuple[np.ndarray, ...]


class _Task(NamedTuple):
    """A population to train on some of the rows: to predict cells of others, or to be kept.

    Attributes:
        indices: Of its fits among all.
        fits: Of one shape, that end at one epoch.
        train_rows: Indices of rows.
        predicted: What to predict; None to return the models.
    """

    indices: list[int]
    fits: list[Fit]
    train_rows: np.ndarray
    predicted: HeldOut | None

    @property
    def steps(self) -> int:
        """About how much work it is."""
        batch = min(self.fits[0].config.train.batch_size, len(self.train_rows))
        return sum(fit.epochs for fit in self.fits) * -(-len(self.train_rows) // batch)


def same_steps(config: TrialConfig, epochs: int, *, rows_before: int, rows: int, effort: float = 1.0) -> Fit:
    """Returns what trains on another number of rows for as many steps.

    Args:
        config: As it was searched.
        epochs: How many epochs it had; fewer than its configuration says where its trial was stopped early.
        rows_before: The train rows of the search.
        rows: The rows to train on now.
        effort: Share of the steps to take; the schedule is shortened with them.
    """
    train = config.train
    before, now = (-(-n // min(train.batch_size, n)) for n in (rows_before, rows))
    total = max(1, round(effort * train.epochs * before / now))
    stop = min(total, max(1, round(total * epochs / train.epochs)))
    return Fit(config.model_copy(update={"train": train.model_copy(update={"epochs": total})}), stop)


def train_fits(fits: Sequence[Fit], rows: Part, *, device: str = "cpu") -> list[FittedModel | None]:
    """Trains configurations from scratch on the same rows.

    Args:
        fits: What to train.
        rows: The rows (n, d).
        device: Where to train; on a CPU in as many processes as there are cores.

    Returns:
        The models in the order of the fits, without scaler and names; None for one that diverged.

    Raises:
        VadtuneError: A process died.
    """
    everything = np.arange(len(rows.x))
    tasks = [_Task(indices, [fits[i] for i in indices], everything, None) for indices in _packs(fits, rows)]
    models: list[FittedModel | None] = [None] * len(fits)
    for task, outcomes in zip(tasks, _run(tasks, rows, device), strict=True):
        for index, arrays in zip(task.indices, outcomes, strict=True):
            if arrays is not None:
                weights, latents = (torch.from_numpy(array) for array in arrays)
                models[index] = FittedModel(fits[index].config, weights, latents)
    return models


def cross_fit(
    fits: Sequence[Fit], rows: Part, holdout: HoldoutConfig, *, seed: int, device: str = "cpu"
) -> CrossFitted:
    """Trains configurations on four fifths of the rows, five times, and has them predict cells of the other fifth.

    Args:
        fits: What to train.
        rows: The rows (n, d); every observed cell is predicted once.
        holdout: How the observed cells of a fifth are dealt out, to be hidden in turn.
        seed: Same seed, same fifths and cells.
        device: As for ``train_fits``.

    Raises:
        VadtuneError: A process died.
    """
    fold_of = np.random.default_rng([seed, 2]).permutation(len(rows.x)) % ROW_FOLDS
    tasks: list[_Task] = []
    truth, row_of = [], []
    for fold in range(ROW_FOLDS):
        inside = np.flatnonzero(fold_of == fold)
        held_out = hold_out(Part(rows.x[inside], rows.mask[inside]), holdout, seed=seed)
        truth.append(held_out.values)
        row_of.append(inside[np.nonzero(held_out.cells)[0] % len(inside)])
        outside = np.flatnonzero(fold_of != fold)
        tasks += [_Task(indices, [fits[i] for i in indices], outside, held_out) for indices in _packs(fits, rows)]
    predictions: list[list[np.ndarray]] = [[] for _ in fits]
    for task, outcomes in zip(tasks, _run(tasks, rows, device), strict=True):
        for index, arrays in zip(task.indices, outcomes, strict=True):
            predictions[index] += arrays or ()
    whole = [np.concatenate(parts) if len(parts) == ROW_FOLDS else None for parts in predictions]
    return CrossFitted(whole, np.concatenate(truth), np.concatenate(row_of))


def _packs(fits: Sequence[Fit], rows: Part) -> list[list[int]]:
    """Returns the indices of the fits that train as one population: of one shape, and ending at one epoch."""
    packs: dict[tuple[object, ...], list[int]] = {}
    for index, fit in enumerate(fits):
        packs.setdefault((*signature(fit.config, rows.x.shape[1]), fit.epochs), []).append(index)
    return list(packs.values())


def _run(tasks: Sequence[_Task], rows: Part, device: str) -> list[list[_Arrays | None]]:
    """Returns what comes of each task, of each of its fits: weights and latents, or predictions; None if diverged."""
    workers = min(len(tasks), len(os.sched_getaffinity(0))) if device == "cpu" else 1
    if workers == 1 or sum(task.steps for task in tasks) < _ALONE_STEPS:
        with _one_thread():
            return [_train(task, rows, device) for task in tasks]
    longest_first = sorted(range(len(tasks)), key=lambda i: -tasks[i].steps)  # so that all cores end together
    context = multiprocessing.get_context("spawn")  # a forked child would inherit locks of threads it does not have
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (rows,)) as pool:
            waiting = {i: pool.submit(_train_here, tasks[i]) for i in longest_first}
            try:
                return [waiting[i].result() for i in range(len(tasks))]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise VadtuneError(
            f"training anew needs {workers} processes, and one of them died, for want of memory perhaps; make room, or "
            "take --refit none"
        ) from error


def _train(task: _Task, rows: Part, device: str) -> list[_Arrays | None]:
    train = Part(rows.x[task.train_rows], rows.mask[task.train_rows])
    population = Population([fit.config for fit in task.fits], train, device)
    for _ in range(task.fits[0].epochs):
        population.train_epoch()
    models = population.models()
    found: list[_Arrays]
    if task.predicted is None:
        found = [(model.weights.cpu().numpy(), model.latents.cpu().numpy()) for model in models]
    else:
        cells = task.predicted.cells
        found = [(x_hat[cells],) for x_hat in reconstruct(models, task.predicted.given)]
    sound = [all(np.isfinite(array).all() for array in arrays) for arrays in found]
    return [arrays if fine else None for arrays, fine in zip(found, sound, strict=True)]


_rows_here: Part


def _start_worker(rows: Part) -> None:
    """Gets a process ready: one thread, the rows, and an end with its parent, however that comes."""
    global _rows_here
    _rows_here = rows
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told by the parent alone
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train_here(task: _Task) -> list[_Arrays | None]:
    return _train(task, _rows_here, "cpu")


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in the processes, so that a result does not depend on where it was computed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
