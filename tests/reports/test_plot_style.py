from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadtune.reports.plot_style import spread_apart


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_are_moved_apart_in_order_and_no_further_than_needed(heights: list[float], gap: float) -> None:
    placed = spread_apart(heights, gap)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(np.asarray(placed)[order]) >= gap - 1e-9).all()
    apart = np.diff(np.asarray(heights)[order])
    if (apart >= gap).all():
        np.testing.assert_allclose(placed, heights, atol=1e-9)
    assert np.mean(placed) == pytest.approx(np.mean(heights), abs=1e-9)
