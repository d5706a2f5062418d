from __future__ import annotations

import pytest

from tests.search.test_run import tiny
from vadtune.config import parse_search
from vadtune.core.errors import DataError
from vadtune.search.driver.model_checks import check_trial_memory


def test_trials_that_do_not_fit_into_memory_are_refused_with_the_way_round() -> None:
    search = parse_search(tiny())
    check_trial_memory(search, 1_000, 50, 2)
    with pytest.raises(DataError, match=r"trials at once: 2\) needs about .* GB are free; take data.sample"):
        check_trial_memory(search, 10**9, 50, 2 * int(search.search.cpus_per_trial))
