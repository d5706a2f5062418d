from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadtune.ensemble.selection import GROUPS, MOST_MEMBERS, PICKS, greedy, greedy_by_ratio, residual_gram, select, top


def made(seed: int, m: int = 6, rows: int = 60, columns: int = 4) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Returns predictions whose errors have a common and an independent part, the truth, and the row of each cell."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows * columns).astype(np.float32)
    common = 0.3 * rng.normal(size=len(truth))
    scales = rng.uniform(0.2, 1.0, m)
    predictions = [(truth + common + s * rng.normal(size=len(truth))).astype(np.float32) for s in scales]
    return predictions, truth, np.arange(rows).repeat(columns)


def rmse(predictions: list[np.ndarray], weights: np.ndarray, truth: np.ndarray) -> float:
    mean = sum(w * p.astype(np.float64) for w, p in zip(weights, predictions, strict=True))
    return float(np.sqrt(np.mean((mean - truth) ** 2)))


@given(st.integers(0, 2**32 - 1))
def test_errors_of_weighted_means_follow_from_the_gram_matrix(seed: int) -> None:
    predictions, truth, rows = made(seed)
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(predictions)))
    gram = residual_gram(predictions, truth, rows)
    assert gram.shape == (GROUPS, len(predictions), len(predictions))
    assert np.sqrt(weights @ gram.sum(0) @ weights) == pytest.approx(rmse(predictions, weights, truth), rel=1e-6)


def test_cells_of_a_row_stay_in_one_group() -> None:
    truth, rows = np.zeros(40, np.float32), np.arange(10).repeat(4)
    for row in range(10):
        of_one_row = residual_gram([(rows == row).astype(np.float32)], truth, rows)[:, 0, 0]
        assert np.count_nonzero(of_one_row) == 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_greedy_is_a_mean_of_few_and_no_worse_than_the_best(seed: int, most: int) -> None:
    predictions, truth, rows = made(seed, m=9)
    gram = residual_gram(predictions, truth, rows).sum(0)
    weights = greedy(gram, most=most)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert np.count_nonzero(weights) <= most
    picks = 1 / np.min(weights[weights > 0])
    assert picks <= PICKS + 1e-9
    best = min(rmse(predictions, one, truth) for one in np.eye(9))
    assert rmse(predictions, weights, truth) <= best + 1e-9
    assert weights[np.diag(gram).argmin()] > 0


def test_greedy_selection_equals_a_literal_implementation() -> None:
    """Caruana et al.: add what lowers the error of the mean most, with replacement."""
    predictions, truth, rows = made(1)
    bag = [int(np.argmin([rmse([p], np.ones(1), truth) for p in predictions]))]
    errors = [rmse([predictions[i] for i in bag], np.ones(1), truth)]
    bags = [list(bag)]
    while len(bag) < PICKS:
        tried = [
            rmse([predictions[i] for i in [*bag, j]], np.full(len(bag) + 1, 1 / (len(bag) + 1)), truth)
            for j in range(len(predictions))
        ]
        bag.append(int(np.argmin(tried)))
        errors.append(min(tried))
        bags.append(list(bag))
    expected = np.bincount(bags[int(np.argmin(errors))], minlength=len(predictions))
    gram = residual_gram(predictions, truth, rows).sum(0)
    np.testing.assert_allclose(greedy(gram, most=99), expected / expected.sum())


def test_equals_go_to_the_first_and_to_the_fewest() -> None:
    truth = np.zeros(20, np.float32)
    same = np.ones(20, np.float32)
    gram = residual_gram([same, same, same], truth, np.arange(20)).sum(0)
    np.testing.assert_array_equal(greedy(gram), [1, 0, 0])
    np.testing.assert_array_equal(top(gram, 2), [0.5, 0.5, 0])
    np.testing.assert_array_equal(top(gram, 9), np.full(3, 1 / 3))


def test_the_uniform_share_grows_with_the_missing_ratio() -> None:
    predictions, truth, rows = made(3, m=12)
    gram = residual_gram(predictions, truth, rows).sum(0)
    uniform, chosen = top(gram, 5), greedy(gram)
    for ratio, share in ((0.1, 0.0), (0.5, 0.0), (0.75, 0.5), (0.9, 0.8), (1.0, 1.0)):
        np.testing.assert_allclose(greedy_by_ratio(gram, ratio), (1 - share) * chosen + share * uniform)
    assert np.count_nonzero(greedy_by_ratio(gram, 0.9)) <= MOST_MEMBERS + 5
    assert np.array_equal(greedy_by_ratio(gram, 0.5001), chosen), "a share that small adds no model"


def test_unseen_scores_are_cross_validated() -> None:
    """Among models that are all alike the best on some rows is not the best on others; the score shows it."""
    rng = np.random.default_rng(0)
    truth, rows = np.zeros(30, np.float32), np.arange(30)
    noise = [rng.normal(size=30).astype(np.float32) for _ in range(60)]
    selection = select(residual_gram(noise, truth, rows), greedy)
    assert selection.rmse < selection.unseen_rmse
    assert selection.best_rmse < selection.best_unseen_rmse
    assert selection.rmse == pytest.approx(rmse(noise, selection.weights, truth), rel=1e-6)
    assert selection.unseen_rmse < selection.best_unseen_rmse < 1.3


def test_an_ensemble_of_one_model_has_weight_one() -> None:
    predictions, truth, rows = made(0, m=1)
    selection = select(residual_gram(predictions, truth, rows), greedy)
    np.testing.assert_array_equal(selection.weights, [1])
    assert selection.rmse == pytest.approx(selection.best_unseen_rmse)
