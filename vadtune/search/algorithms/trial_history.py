"""The Optuna storage of a search: it shows samplers a bounded part of the history, so their cost does not grow."""

from __future__ import annotations

import bisect
import copy
from collections import deque
from collections.abc import Container, Sequence

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

RECENT = 480
"""Of how many finished trials, and of how many unfinished ones, samplers see the latest.

They see all trials until more have finished.
"""
_BEST = 25  # as many as TPE models as good ones


class RecentTrials(InMemoryStorage):
    """Keeps all trials in memory and lists the best ones, the latest finished and the latest unfinished ones.

    TPE's time for one suggestion grows with the number of listed trials, and it gives old trials little weight. It
    models the 25 best trials against the others, so the best ones stay listed. For one study that is minimised.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unfinished: set[int] = set()
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._best: list[tuple[tuple[float, ...], int]] = []
        self._finished = 0

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Adds a trial. See optuna.storages.BaseStorage."""
        trial_id = int(super().create_new_trial(study_id, template_trial))
        self._sort_in(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Sets the state of a trial and its values. See optuna.storages.BaseStorage."""
        changed = bool(super().set_trial_state_values(trial_id, state, values))
        self._sort_in(trial_id)
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Returns the listed trials in order of their numbers. See optuna.storages.BaseStorage."""
        if self._finished <= RECENT or states == (TrialState.WAITING,):
            return list(super().get_all_trials(study_id, deepcopy, states))
        running = sorted(self._unfinished)[-RECENT:]
        listed = {*running, *self._recent, *(trial_id for _, trial_id in self._best)}
        trials = [self.get_trial(trial_id) for trial_id in sorted(listed)]
        chosen = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _sort_in(self, trial_id: int) -> None:
        trial = self.get_trial(trial_id)
        if not trial.state.is_finished():
            self._unfinished.add(trial_id)
            return
        self._unfinished.discard(trial_id)
        self._recent.append(trial_id)
        self._finished += 1
        if (rank := _rank(trial)) is not None:
            bisect.insort(self._best, (rank, trial_id))
            del self._best[_BEST:]


def _rank(trial: FrozenTrial) -> tuple[float, ...] | None:
    """Returns what TPE ranks a finished trial by: complete ones first, then pruned ones by how far they came."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return (0.0, trial.value)
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        step, value = max(trial.intermediate_values.items())
        return (1.0, -step, value)
    return None
