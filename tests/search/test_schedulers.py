from __future__ import annotations

import pytest
from ray.tune.schedulers import TrialScheduler

from vadtune import config as config_module
from vadtune.config import SearchConfig
from vadtune.search.schedulers import SCHEDULERS, report_epochs


def test_the_names_a_file_may_use_are_those_of_the_registries() -> None:
    assert set(config_module.SCHEDULERS) == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("epochs", [1, 2, 5, 9, 10, 81, 250, 1000])
def test_every_scheduler_builds_and_reports_end_with_the_last_epoch(scheduler: str, epochs: int) -> None:
    search = SearchConfig(scheduler=scheduler)
    assert isinstance(SCHEDULERS[scheduler](search, epochs), TrialScheduler)
    due = report_epochs(search, epochs)
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
    search = SearchConfig()
    scheduler = SCHEDULERS["asha"](search, 250)
    (bracket,) = scheduler._brackets
    rungs = sorted(milestone for milestone, _ in bracket._rungs)
    assert [rung for rung in rungs if rung < 250] == report_epochs(search, 250)[:-1]


def test_a_denser_curve_is_an_option() -> None:
    assert report_epochs(SearchConfig(report=100), 250) == [28, 84, 100, 200, 250]
    assert report_epochs(SearchConfig(report=100, scheduler="none"), 250) == [100, 200, 250]
    assert len(report_epochs(SearchConfig(scheduler="none"), 250)) == 10
