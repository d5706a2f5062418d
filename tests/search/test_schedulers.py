from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from vadtune.config import SearchConfig, SearchFile, parse_search
from vadtune.config import sections as config_module
from vadtune.search.algorithms.schedulers import EPOCH, SCHEDULERS, AshaSkippingClosedForm, report_epochs


def search_file(epochs: int, **search: Any) -> SearchFile:
    return parse_search(
        {
            "name": "tiny",
            "data": {"source": "iris"},
            "model": {"layers": {"int": [0, 2]}},
            "train": {"epochs": epochs},
            "search": {"samples": 4, **search},
        }
    )


def test_the_names_a_file_may_use_are_those_of_the_registries() -> None:
    assert set(config_module.SCHEDULERS) == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("epochs", [1, 2, 5, 9, 10, 81, 250, 1000])
def test_every_scheduler_builds_and_reports_end_with_the_last_epoch(scheduler: str, epochs: int) -> None:
    assert isinstance(SCHEDULERS[scheduler](search_file(epochs, scheduler=scheduler)), TrialScheduler)
    due = report_epochs(SearchConfig(scheduler=scheduler), epochs)
    assert due == sorted(set(due))
    assert due[0] >= 1
    assert due[-1] == epochs


def test_asha_trials_report_at_the_rungs() -> None:
    assert report_epochs(SearchConfig(), 250) == [28, 84, 250]
    assert report_epochs(SearchConfig(grace_epochs=10), 250) == [10, 30, 90, 250]
    assert report_epochs(SearchConfig(reduction_factor=2, grace_epochs=50), 250) == [50, 100, 200, 250]
    # One that would fall just before the end, where validating twice tells nothing new, is left out by the default.
    assert report_epochs(SearchConfig(), 243) == [27, 81, 243]


def test_the_rungs_are_those_asha_decides_at() -> None:
    (bracket,) = SCHEDULERS["asha"](search_file(250))._brackets  # type: ignore[attr-defined]
    rungs = sorted(milestone for milestone, _ in bracket._rungs)
    assert [rung for rung in rungs if rung < 250] == report_epochs(SearchConfig(), 250)[:-1]


def test_solved_decoders_neither_race_nor_stop_networks() -> None:
    scheduler = AshaSkippingClosedForm(search_file(90))
    scheduler.set_search_properties("score", "min")
    actions = {}
    for index, (layers, score) in enumerate([(0, 0.1), (0, 0.2), (0, 0.3), (1, 0.8), (1, 0.7), (1, 0.9), (0, 0.9)]):
        trial = SimpleNamespace(trial_id=str(index), config={"model.layers": layers})
        scheduler.on_trial_add(None, trial)
        actions[layers, score] = scheduler.on_trial_result(None, trial, {EPOCH: 10, "score": score})
        if layers == 0:
            scheduler.on_trial_complete(None, trial, {EPOCH: 90, "score": score})
    stopped = [key for key, action in actions.items() if action == TrialScheduler.STOP]
    assert stopped == [(1, 0.9)]  # the worst of the networks; the solved ones were better than all, or as bad
    (bracket,) = scheduler._brackets
    assert sorted(len(recorded) for _, recorded in bracket._rungs) == [0, 0, 3]


def test_a_denser_curve_is_an_option() -> None:
    assert report_epochs(SearchConfig(report=100), 250) == [28, 84, 100, 200, 250]
    assert report_epochs(SearchConfig(report=100, scheduler="none"), 250) == [100, 200, 250]
    assert len(report_epochs(SearchConfig(scheduler="none"), 250)) == 10


def test_after_a_resume_hyperband_waits_for_no_trial_that_had_ended() -> None:
    scheduler = SCHEDULERS["hyperband"](search_file(9, scheduler="hyperband"))
    scheduler.set_search_properties("val_missing_rmse", "min")
    controller: Any = SimpleNamespace(search_alg=SimpleNamespace())
    ended, waiting = (Trial("x", stub=True) for _ in range(2))
    ended.status, waiting.status = Trial.TERMINATED, Trial.PENDING
    for trial in (ended, waiting):
        scheduler.on_trial_add(controller, trial)
    assert list(scheduler._trial_info) == [waiting]
    assert scheduler.choose_trial_to_run(controller) is waiting
