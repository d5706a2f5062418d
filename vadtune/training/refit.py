"""Training of chosen configurations on more rows, or on parts of the rows for cross-fitted predictions.

Configurations of one shape train as one population; populations train in several processes, one per core, because
threads would wait for each other with models this small.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vadtune.config import TrialConfig
from vadtune.core.errors import VadtuneError
from vadtune.core.processes import available_cores, worker_context
from vadtune.core.threads import one_thread, use_threads
from vadtune.data import HeldOut, HoldoutConfig, MaskedRows, hold_out
from vadtune.training.inference import FittedModel, reconstruct
from vadtune.training.member import signature
from vadtune.training.population import Population

ROW_FOLDS = 5
_IN_PROCESS_STEPS = 4000  # fewer steps finish before worker processes have started


class Fit(NamedTuple):
    """A configuration to train, and the epoch to stop at, which may be before its schedule ends."""

    config: TrialConfig
    epochs: int


class RowFold(NamedTuple):
    """A fifth of the rows, and the reconstructions by models trained on the others.

    Attributes:
        train: The other rows (n, d).
        held_out: The fifth, with cells hidden in turn.
        inside: Row indices of the fifth.
        trained: Reconstructions of ``train`` by fit, float32 (n, d); without the fits that diverged.
        x_hat: Reconstructions of ``held_out`` by fit.
    """

    train: MaskedRows
    held_out: HeldOut
    inside: np.ndarray
    trained: dict[int, np.ndarray]
    x_hat: dict[int, np.ndarray]


class CrossFitted(NamedTuple):
    """Predictions of observed cells by models trained without their rows.

    Attributes:
        folds: The fifths.
        sound: Indices of the fits that diverged in no fold.
    """

    folds: list[RowFold]
    sound: list[int]

    @property
    def truth(self) -> np.ndarray:
        """The values of the cells, float32 (c,)."""
        return np.concatenate([fold.held_out.values for fold in self.folds])

    @property
    def rows(self) -> np.ndarray:
        """The row of each cell, (c,)."""
        return np.concatenate(
            [fold.inside[np.nonzero(fold.held_out.cells)[0] % len(fold.inside)] for fold in self.folds]
        )

    def predictions(self, fit: int) -> np.ndarray:
        """Returns the predictions of the cells by a sound fit, float32 (c,)."""
        return np.concatenate([fold.x_hat[fit][fold.held_out.cells] for fold in self.folds])


_Arrays = tuple[np.ndarray, ...]


class _Task(NamedTuple):
    """A population to train on some of the rows.

    Attributes:
        indices: Positions of the fits among all.
        fits: Fits of one shape that stop at the same epoch.
        train_rows: Row indices.
        predicted: Rows to reconstruct; None to return the models.
    """

    indices: list[int]
    fits: list[Fit]
    train_rows: np.ndarray
    predicted: HeldOut | None

    @property
    def steps(self) -> int:
        """Number of model-steps, an estimate of the work."""
        batch = min(self.fits[0].config.train.batch_size, len(self.train_rows))
        return sum(fit.epochs for fit in self.fits) * -(-len(self.train_rows) // batch)


def same_steps(config: TrialConfig, epochs: int, *, rows_before: int, rows: int, effort: float = 1.0) -> Fit:
    """Returns a fit with rescaled epochs, so that the number of steps is unchanged on another number of rows.

    Args:
        config: The configuration of the search.
        epochs: Number of epochs it trained; fewer than configured if its trial was stopped early.
        rows_before: Number of train rows in the search.
        rows: Number of rows to train on now.
        effort: Share of the steps to take; the schedule is shortened accordingly.
    """
    train = config.train
    before, now = (-(-n // min(train.batch_size, n)) for n in (rows_before, rows))
    total = max(1, round(effort * train.epochs * before / now))
    stop = min(total, max(1, round(total * epochs / train.epochs)))
    return Fit(config.model_copy(update={"train": train.model_copy(update={"epochs": total})}), stop)


class Trainer:
    """Trains configurations from scratch on rows or parts of them; a context manager that ends its processes on exit.

    Args:
        rows: The rows (n, d).
        device: Where to train; on a CPU in one process per core, started when the work is worth it.

    Attributes:
        workers: Number of configurations that train at once.
    """

    def __init__(self, rows: MaskedRows, device: str = "cpu") -> None:
        self._rows, self._device = rows, device
        self.workers = available_cores() if device == "cpu" else 1
        self._pool: ProcessPoolExecutor | None = None
        self._files: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Trainer:
        """Returns the trainer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._files is not None:
            self._files.cleanup()

    def train(self, fits: Sequence[Fit]) -> list[FittedModel | None]:
        """Trains configurations on all rows.

        Returns:
            The models in the order of the fits, without scaler and names; None for one that diverged.

        Raises:
            VadtuneError: A process died.
        """
        everything = np.arange(len(self._rows.x))
        tasks = [_Task(indices, [fits[i] for i in indices], everything, None) for indices in self._packs(fits)]
        models: list[FittedModel | None] = [None] * len(fits)
        for task, outcomes in zip(tasks, self._run(tasks), strict=True):
            for index, arrays in zip(task.indices, outcomes, strict=True):
                if arrays is not None:
                    weights, latents = (torch.from_numpy(array) for array in arrays)
                    models[index] = FittedModel(fits[index].config, weights, latents)
        return models

    def cross_fit(self, fits: Sequence[Fit], rows: int, holdout: HoldoutConfig, *, seed: int) -> CrossFitted:
        """Trains configurations on four fifths of the rows, five times, and predicts cells of the other fifth.

        Args:
            fits: Configurations and epochs.
            rows: Number of rows to use, from the first; every observed cell of these is predicted once.
            holdout: How the observed cells of a fifth are split into parts that are hidden in turn.
            seed: Of the fifths and the cells.

        Raises:
            VadtuneError: A process died.
        """
        fold_of = np.random.default_rng([seed, 2]).permutation(rows) % ROW_FOLDS
        folds: list[RowFold] = []
        tasks: list[tuple[RowFold, _Task]] = []
        for number in range(ROW_FOLDS):
            inside, outside = np.flatnonzero(fold_of == number), np.flatnonzero(fold_of != number)
            held_out = hold_out(self._rows.of_rows(inside), holdout, seed=seed)
            fold = RowFold(self._rows.of_rows(outside), held_out, inside, {}, {})
            folds.append(fold)
            for indices in self._packs(fits):
                tasks.append((fold, _Task(indices, [fits[i] for i in indices], outside, held_out)))
        for (fold, task), outcomes in zip(tasks, self._run([task for _, task in tasks]), strict=True):
            for index, arrays in zip(task.indices, outcomes, strict=True):
                if arrays is not None:
                    fold.trained[index], fold.x_hat[index] = arrays
        return CrossFitted(folds, [i for i in range(len(fits)) if all(i in fold.x_hat for fold in folds)])

    def _packs(self, fits: Sequence[Fit]) -> list[list[int]]:
        """Returns the fits, by index, that train as one population: of one shape and with the same last epoch."""
        packs: dict[tuple[object, ...], list[int]] = {}
        for index, fit in enumerate(fits):
            packs.setdefault((*signature(fit.config, self._rows.x.shape[1]), fit.epochs), []).append(index)
        return list(packs.values())

    def _run(self, tasks: Sequence[_Task]) -> list[list[_Arrays | None]]:
        """Returns for each task and fit the weights and latents, or the reconstructions; None where it diverged."""
        small = len(tasks) == 1 or sum(task.steps for task in tasks) < _IN_PROCESS_STEPS
        if self.workers == 1 or (self._pool is None and small):
            with one_thread():
                return [_train(task, self._rows, self._device) for task in tasks]
        pool = self._started()
        longest_first = sorted(range(len(tasks)), key=lambda i: -tasks[i].steps)  # so that all cores end together
        try:
            futures = {i: pool.submit(_train_here, tasks[i]) for i in longest_first}
            return [futures[i].result() for i in range(len(tasks))]
        except BrokenProcessPool as error:
            raise VadtuneError(
                f"a refit needs {self.workers} processes, and one of them died, possibly for lack of memory; "
                "free memory, or take --refit none"
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Mapped files: all processes share their memory, and starting one does not wait until it has read the rows.
            self._files = tempfile.TemporaryDirectory(prefix="vadtune-")
            for name, array in self._rows._asdict().items():
                np.save(Path(self._files.name) / f"{name}.npy", array)
            self._pool = ProcessPoolExecutor(self.workers, worker_context(), _start_worker, (self._files.name,))
        return self._pool


def _train(task: _Task, rows: MaskedRows, device: str) -> list[_Arrays | None]:
    train = rows if len(task.train_rows) == len(rows.x) else rows.of_rows(task.train_rows)  # all of them, or a copy
    population = Population([fit.config for fit in task.fits], train, device)
    for _ in range(task.fits[0].epochs):
        population.train_epoch()
    models = population.models()
    outcomes: list[_Arrays]
    if task.predicted is None:
        outcomes = [(model.weights.cpu().numpy(), model.latents.cpu().numpy()) for model in models]
    else:
        trained = [model.reconstruct_train(train.x.shape[1]) for model in models]
        outcomes = list(zip(trained, reconstruct(models, task.predicted.visible), strict=True))
    sound = [all(np.isfinite(array).all() for array in arrays) for arrays in outcomes]
    return [arrays if fine else None for arrays, fine in zip(outcomes, sound, strict=True)]


_worker_rows: MaskedRows


def _start_worker(folder: str) -> None:
    """Initialises a worker process: one thread, the rows, and exit when the parent ends."""
    global _worker_rows
    files = (Path(folder) / f"{name}.npy" for name in MaskedRows._fields)
    _worker_rows = MaskedRows(*(np.load(file, mmap_mode="r", allow_pickle=False) for file in files))
    use_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # only the parent reports Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train_here(task: _Task) -> list[_Arrays | None]:
    return _train(task, _worker_rows, "cpu")
