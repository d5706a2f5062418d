"""The part of a search's history that samplers see."""

from __future__ import annotations

import pickle

import optuna
import pytest
from optuna.trial import TrialState

from vadtune.search.algorithms import trial_history
from vadtune.search.algorithms.trial_history import RecentTrials

# Optuna 4 warns that `multivariate` is experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def studies(monkeypatch: pytest.MonkeyPatch, recent: int) -> tuple[optuna.Study, optuna.Study]:
    """Returns a study with the storage of a search and one with Optuna's own, with samplers of one seed."""
    monkeypatch.setattr(trial_history, "RECENT", recent)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tuple(  # type: ignore[return-value]
        optuna.create_study(
            storage=storage, sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5, multivariate=True)
        )
        for storage in (RecentTrials(), optuna.storages.InMemoryStorage())
    )


def add_trial(study: optuna.Study, state: TrialState = TrialState.COMPLETE) -> optuna.trial.FrozenTrial:
    trial = study.ask()
    value = abs(trial.suggest_float("x", -1, 1)) + 0.1 * (trial.number % 7)
    trial.report(value, trial.number % 3 + 1)
    return study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)


def test_a_search_of_fewer_trials_is_sampled_as_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, all_ = studies(monkeypatch, 60)
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    for number in range(60):
        assert add_trial(recent, states[number % 4]).params == add_trial(all_, states[number % 4]).params


def test_a_sampler_sees_the_best_the_latest_and_the_unfinished_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = studies(monkeypatch, 40)
    running = study.ask()
    running.suggest_float("x", -1, 1)
    finished = [add_trial(study, TrialState.PRUNED if number % 2 else TrialState.COMPLETE) for number in range(150)]
    complete = sorted((t for t in finished if t.state == TrialState.COMPLETE), key=lambda trial: trial.value or 0.0)
    expected = {running.number} | {t.number for t in finished[-40:]} | {t.number for t in complete[:25]}
    assert [trial.number for trial in study.trials] == sorted(expected)
    assert {t.number for t in study.get_trials(states=(TrialState.RUNNING,))} == {running.number}
    assert study.best_trial.number == complete[0].number


def test_enqueued_trials_are_all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = studies(monkeypatch, 5)
    for number in range(30):
        study.enqueue_trial({"x": number / 100})
    assert [add_trial(study).params["x"] for _ in range(30)] == [number / 100 for number in range(30)]


def test_a_pickled_history_goes_on_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = studies(monkeypatch, 10)
    for _ in range(30):
        add_trial(study)
    copied = pickle.loads(pickle.dumps(study))
    for _ in range(5):
        assert add_trial(copied).params == add_trial(study).params
