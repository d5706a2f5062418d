"""Which configuration is tried next.

To add a sampler: one factory here, one line in SAMPLERS, its name in config.SAMPLERS.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from vadtune.config import SearchFile
from vadtune.search.algorithms.space import suggest


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    # group: parameters that exist together are modelled together, which conditional spaces need. Twice Optuna's usual
    # number of random trials first: with ten, TPE settles on the neighbourhood of the first trial that completes.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=20, multivariate=True, group=True, constant_liar=True)


def _cmaes(seed: int) -> optuna.samplers.BaseSampler:
    import cmaes  # noqa: F401 - Optuna would import it inside the first suggestion, which Ray then warns is slow

    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "cmaes": _cmaes,
    # Every grid point is enqueued; the sampler below it never gets to choose.
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def first_points(search: SearchFile) -> list[dict[str, Any]]:
    """Returns the configurations to try before the sampler chooses: those of the file, or the grid.

    A grid is tried in random order, so that any first part of it is a fair sample.
    """
    points = search.search.initial
    if search.search.sampler == "grid":
        grid = search.grid()
        random.Random(search.search.seed).shuffle(grid)
        points = grid[: search.search.samples]
    return points


def sample_count(search: SearchFile) -> int:
    """Returns the number of trials of a search."""
    if search.search.sampler == "grid":
        return len(first_points(search))
    assert search.search.samples is not None
    return search.search.samples


class Searcher(OptunaSearch):
    """OptunaSearch that tells Optuna how a trial really ended.

    The stock one tells a trial that a scheduler stopped as COMPLETE with the score of its low budget, and one that
    failed after its first report likewise. Here the former is PRUNED, with its intermediate values by epoch, and the
    latter FAIL.

    Args:
        search: The search file.
    """

    def __init__(self, search: SearchFile) -> None:
        self._epochs = search.epochs
        self._last_epoch: dict[str, int] = {}  # a trial that is tried again may report an epoch once more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = SAMPLERS[search.search.sampler](search.search.seed)
        super().__init__(
            space=partial(suggest, search),
            metric=search.search.metric,
            mode="min",
            sampler=sampler,
            points_to_evaluate=first_points(search),
        )

    @property
    def study(self) -> optuna.Study:
        """Optuna's record of the search."""
        return self._ot_study

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports an intermediate value, its step being the epoch."""
        if result["epoch"] > self._last_epoch.get(trial_id, -1):
            self._last_epoch[trial_id] = result["epoch"]
            self._ot_trials[trial_id].report(result[self.metric], result["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended."""
        if trial_id in self._completed_trials or trial_id not in self._ot_trials:
            return
        trial = self._ot_trials[trial_id]
        if error:
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif result and self.metric in result and result["epoch"] >= self._epochs:
            self._ot_study.tell(trial, result[self.metric])
        else:
            if result and self.metric in result:
                self.on_trial_result(trial_id, result)
            self._ot_study.tell(trial, state=TrialState.PRUNED)
        self._completed_trials.add(trial_id)
