from __future__ import annotations

import numpy as np
import pytest

from vadtune.core.metrics import score


def test_scores_are_over_the_chosen_cells_alone() -> None:
    truth = np.array([[1.0, np.nan], [3.0, 4.0]])
    x_hat = np.array([[0.0, 99.0], [3.0, 7.0]])
    cells = np.array([[True, False], [False, True]])
    result = score(x_hat, truth, cells)
    assert result.rmse == pytest.approx(np.sqrt((1 + 9) / 2))
    assert result.mae == pytest.approx(2.0)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        score(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2), dtype=bool))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes must be equal"):
        score(np.zeros((2, 2)), np.zeros((2, 3)), np.ones((2, 2), dtype=bool))
