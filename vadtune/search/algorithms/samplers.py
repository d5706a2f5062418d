"""Samplers: they choose the next configuration.

To add a sampler: one factory here, one line in SAMPLERS, its name in config.SAMPLERS.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from vadtune.config import SearchFile
from vadtune.search.algorithms.space import suggest
from vadtune.search.algorithms.trial_history import RecentTrials
from vadtune.search.ray_compat import optuna_state
from vadtune.search.resume.pickle_check import check_pickle

logger = logging.getLogger(__name__)

_DRAWS, _RANDOM_DRAWS = 10, 1000
"""How often the sampler, and then chance, is asked for a configuration before a space counts as tried out."""


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    # group: models parameters that exist together jointly, which conditional spaces need. Twice Optuna's default number
    # of random trials: with ten, TPE stays in the neighbourhood of the first trial that completes.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=20, multivariate=True, group=True, constant_liar=True)


def _cmaes(seed: int) -> optuna.samplers.BaseSampler:
    import cmaes  # noqa: F401 - Optuna would import it in the first suggestion, and Ray would warn that it is slow

    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "cmaes": _cmaes,
    # Every grid point is enqueued, so this sampler is never asked.
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def first_points(search: SearchFile) -> list[dict[str, Any]]:
    """Returns the configurations to try before the sampler chooses: ``search.initial``, or the grid.

    A grid is shuffled, so that a search that ends early has tried a random sample of it.
    """
    if search.search.sampler != "grid":
        return search.search.initial
    grid = search.grid()
    random.Random(search.search.seed).shuffle(grid)
    return grid[: search.search.samples]


def sample_count(search: SearchFile) -> int | None:
    """Returns the number of trials of a search; None if only a budget ends it."""
    return len(first_points(search)) if search.search.sampler == "grid" else search.search.samples


class _End(NamedTuple):
    """How a trial ended: its state, its score if it is complete, and its scores by epoch."""

    state: TrialState
    score: float | None
    scores: dict[int, float]


class Searcher(OptunaSearch):
    """OptunaSearch that proposes no configuration twice, and tells Optuna how trials ended.

    Training a configuration again would give the same score, so a sampler that draws it again is told that score at
    once and asked for another. Tune's OptunaSearch reports stopped and failed trials as COMPLETE, a stopped one with
    the score of its low budget. Here they are PRUNED, with their intermediate values by epoch, and FAIL.
    """

    _tried: dict[str, _End | None] | None = None  # None after a resume of a search of version 0.1.0

    def __init__(self, search: SearchFile) -> None:
        self._epochs = search.epochs
        self._tried = {}  # configuration -> how its trial ended, None before that
        self._draw = partial(suggest, search)
        self._last_epoch: dict[str, int] = {}  # a retried trial may report an epoch twice
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = SAMPLERS[search.search.sampler](search.search.seed)
        super().__init__(
            space=self._draw,
            metric=search.search.metric,
            mode="min",
            sampler=sampler,
            points_to_evaluate=first_points(search),
            storage=RecentTrials(),
        )

    @property
    def study(self) -> optuna.Study:
        """Optuna's study of the search."""
        state = optuna_state(self)
        assert state is not None
        return state[0]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Proposes a configuration that was not tried; ends the search if there is none. See tune.search.Searcher."""
        state, tried = optuna_state(self), self._tried
        if state is None or tried is None:
            proposed: dict[str, Any] | str | None = super().suggest(trial_id)
            return proposed
        study, trials, _ = state
        for _ in range(_DRAWS):
            sample = super().suggest(trial_id)
            if (key := _key(sample)) not in tried:
                tried[key] = None
                return dict(sample)
            _tell_again(study, trials.pop(trial_id), tried[key])
        by_chance = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=len(tried)))
        for _ in range(_RANDOM_DRAWS):
            self._draw(drawn := by_chance.ask())
            if _key(drawn.params) not in tried:
                study.enqueue_trial(drawn.params)
                return self.suggest(trial_id)
        logger.info("no configuration is left that was not tried: the search ends after %d trials", len(tried))
        return str(self.FINISHED)

    def restore(self, checkpoint_path: str) -> None:
        """Loads the state of an interrupted search. See tune.search.Searcher.

        Raises:
            SearchError: Optuna would execute code that is hidden in the state of its CMA-ES sampler, a pickle as text.
        """
        super().restore(checkpoint_path)
        if (state := optuna_state(self)) is None:
            return
        for trial in state[0].get_trials(deepcopy=False):
            parts = {key: value for key, value in trial.system_attrs.items() if "optimizer" in key}
            prefix = min(parts, default="").rpartition(":")[0]
            check_pickle(bytes.fromhex("".join(str(parts[f"{prefix}:{index}"]) for index in range(len(parts)))))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports an intermediate value to Optuna, with the epoch as step."""
        state = optuna_state(self)
        if state is None:
            super().on_trial_result(trial_id, result)
        elif result["epoch"] > self._last_epoch.get(trial_id, -1):
            self._last_epoch[trial_id] = result["epoch"]
            state[1][trial_id].report(result[self.metric], result["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Reports the end of a trial to Optuna."""
        state = optuna_state(self)
        if state is None:
            super().on_trial_complete(trial_id, result, error)
            return
        study, trials, completed = state
        if trial_id in completed or trial_id not in trials:
            return
        if error:
            ended = study.tell(trials[trial_id], state=TrialState.FAIL)
        elif result and self.metric in result and result["epoch"] >= self._epochs:
            ended = study.tell(trials[trial_id], result[self.metric])
        else:
            if result and self.metric in result:
                self.on_trial_result(trial_id, result)
            ended = study.tell(trials[trial_id], state=TrialState.PRUNED)
        if self._tried is not None:
            self._tried[_key(ended.params)] = _End(ended.state, ended.value, ended.intermediate_values)
        completed.add(trial_id)
        del trials[trial_id]  # the study has its own copy
        self._last_epoch.pop(trial_id, None)


def _key(sample: dict[str, Any]) -> str:
    return repr(sorted(sample.items()))


def _tell_again(study: optuna.Study, trial: optuna.Trial, known: _End | None) -> None:
    """Tells Optuna of a trial that it ends as one of the same configuration did; as failed while that one runs."""
    if known is None or known.state == TrialState.FAIL:
        study.tell(trial, state=TrialState.FAIL)
        return
    for step, value in known.scores.items():
        trial.report(value, step)
    if known.state == TrialState.COMPLETE:
        study.tell(trial, known.score)
    else:
        study.tell(trial, state=TrialState.PRUNED)
