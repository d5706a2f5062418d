from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import Matern

from tests.conftest import trial_config
from vadtune.core.sampling import sample_rows
from vadtune.data import HeldOut, HoldoutConfig, MaskedRows, hold_out
from vadtune.ensemble.kernel_regression import KernelRegression, support_rows
from vadtune.ensemble.regression_choice import (
    RegressionChoice,
    RegressionSplit,
    choose_regression,
    train_support,
    worth_its_time,
)
from vadtune.training.population import Population

CHOICE = RegressionChoice(length=1.0, penalty=0.01, share=1.0, observed=1e-6, gain=0.1)


def table(seed: int, n: int = 120, d: int = 6, missing: float = 0.2) -> tuple[MaskedRows, np.ndarray]:
    """Returns rows near a curved surface of two dimensions, with missing cells, and their complete values."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1.5, 1.5, (n, 2))
    waves = np.sin(u @ np.random.default_rng(0).normal(size=(2, d)) + np.arange(d))
    x = (waves + 0.02 * rng.normal(size=(n, d))).astype(np.float32)
    return MaskedRows.hide(x, rng.random((n, d)) > missing), x


def completed(seed: int, error: float = 0.3) -> tuple[RegressionSplit, np.ndarray]:
    """Returns rows as an ensemble of this error sees them, and the complete train rows."""
    rng = np.random.default_rng(seed)
    train, x = table(seed)
    validation, truth = table(seed + 1, n=60)
    held_out = hold_out(validation, HoldoutConfig(), seed=0)
    x_hat = np.tile(truth, (4, 1)) + error * rng.normal(size=held_out.cells.shape)
    return RegressionSplit(train, x + error * rng.normal(size=x.shape), held_out, 60, x_hat), x


def test_it_is_the_mean_of_a_gaussian_process_on_the_other_columns() -> None:
    train, x = table(0, n=50)
    rows, _ = table(1, n=20)
    filled = np.where(train.mask, train.x, x)
    fitted = CHOICE.fit(train, filled)
    x_hat = np.zeros(rows.x.shape)
    refined = fitted.refine(x_hat, rows)
    given = np.where(rows.mask, rows.x, x_hat)
    for column in range(x.shape[1]):
        others, known = np.arange(x.shape[1]) != column, train.mask[:, column]
        kernel = Matern(length_scale=fitted.length, nu=1.5)
        learned, y = filled[known][:, others], train.x[known, column].astype(np.float64)
        weights = np.linalg.solve(kernel(learned) + CHOICE.penalty * np.eye(known.sum()), y - y.mean())
        cells = ~rows.mask[:, column] & rows.mask.any(1)
        expected = kernel(given[cells][:, others], learned) @ weights + y.mean()
        np.testing.assert_allclose(refined[cells, column], expected, rtol=1e-3, atol=1e-3)
    differences = filled[:, None] - filled
    assert fitted.length == pytest.approx(np.sqrt((differences**2).sum(-1).mean()), rel=1e-4)


def test_observed_cells_empty_rows_and_other_rows_do_not_matter() -> None:
    train, x = table(0)
    rows, _ = table(1, n=30)
    mask = rows.mask.copy()
    mask[3] = False
    rows = MaskedRows.hide(rows.x, mask)
    x_hat = np.random.default_rng(2).normal(size=rows.x.shape)
    fitted = CHOICE.fit(train, x)
    refined = fitted.refine(x_hat, rows)
    np.testing.assert_array_equal(refined[mask], x_hat[mask])
    np.testing.assert_array_equal(refined[3], x_hat[3])
    assert (refined != x_hat)[~mask & mask.any(1, keepdims=True)].all()
    alone = fitted.refine(x_hat[7:8], MaskedRows(rows.x[7:8], mask[7:8]))
    np.testing.assert_allclose(alone[0], refined[7], rtol=1e-5, atol=1e-6)


def test_the_share_falls_with_the_observed_cells_of_a_row() -> None:
    train, x = table(0)
    rows, truth = table(1, n=30)
    mask = np.ones(rows.x.shape, dtype=bool)
    mask[0, :1], mask[1, :3] = False, False
    whole = CHOICE.fit(train, x)
    half = whole._replace(share=0.5, observed=5 / 6)
    part, x_hat = MaskedRows.hide(truth, mask), np.zeros(truth.shape)
    np.testing.assert_allclose(half.refine(x_hat, part)[0, 0], 0.5 * whole.refine(x_hat, part)[0, 0])
    np.testing.assert_allclose(half.refine(x_hat, part)[1, :3], 0.3 * whole.refine(x_hat, part)[1, :3])


def test_a_column_never_sees_itself() -> None:
    """What the ensemble made of a row's missing cell has no part in the regression of that cell."""
    train, x = table(0)
    rows, _ = table(1, n=20)
    fitted = CHOICE.fit(train, x)
    row = int(np.flatnonzero((~rows.mask).sum(1) == 1)[0])
    (column,) = np.flatnonzero(~rows.mask[row])
    part = MaskedRows(rows.x[row : row + 1], rows.mask[row : row + 1])
    one, other = np.zeros((1, x.shape[1])), np.zeros((1, x.shape[1]))
    other[0, column] = 2.0
    np.testing.assert_allclose(fitted.refine(one, part), fitted.refine(other, part), rtol=1e-3, atol=1e-3)


def test_columns_observed_in_too_few_rows_keep_the_reconstruction_of_the_ensemble() -> None:
    train, x = table(0)
    mask = train.mask.copy()
    mask[5:, 2] = False
    fitted = CHOICE.fit(MaskedRows.hide(x, mask), x)
    rows, _ = table(1, n=20)
    x_hat = np.ones(rows.x.shape)
    refined = fitted.refine(x_hat, rows)
    np.testing.assert_array_equal(refined[:, 2], x_hat[:, 2])
    assert np.isfinite(refined).all()


def test_a_regression_that_helps_is_chosen_by_as_much_as_it_helps() -> None:
    split, _ = completed(0)
    choice = choose_regression([split])
    assert choice is not None
    assert 0.5 < choice.share <= 1
    assert 0.3 < choice.gain < 1
    assert choice.observed == pytest.approx(split.held_out.visible.mask.mean())
    rows, truth = table(9, n=200)
    x_hat = truth + 0.3 * np.random.default_rng(3).normal(size=truth.shape)
    refined = choice.fit(split.train, split.train_x_hat).refine(x_hat, rows)
    before, after = (np.sqrt(np.mean((y - truth)[~rows.mask] ** 2)) for y in (x_hat, refined))
    assert after < 0.8 * before
    assert choose_regression([split]) == choice, "the same again"


def test_a_regression_of_no_use_is_not_chosen() -> None:
    split, _ = completed(0, error=0.0)
    assert choose_regression([split]) is None
    rng = np.random.default_rng(0)
    noise, others = (MaskedRows.hide(rng.normal(size=(80, 4)), rng.random((80, 4)) > 0.1) for _ in range(2))
    held_out = hold_out(others, HoldoutConfig(), seed=0)
    nothing = RegressionSplit(noise, np.zeros((80, 4)), held_out, 80, np.zeros(held_out.cells.shape))
    found = choose_regression([nothing])
    assert found is None or found.share < 0.2


@pytest.mark.parametrize("huge", [1e10, 1e20, 1e30])
def test_huge_values_leave_what_the_ensemble_says(huge: float) -> None:
    train, x = table(0)
    rows, _ = table(1, n=20)
    values = rows.x.copy()
    values[3, np.flatnonzero(rows.mask[3])[0]] = huge
    x_hat = np.ones(values.shape)
    refined = CHOICE.fit(train, x).refine(x_hat, MaskedRows(values, rows.mask))
    assert np.isfinite(refined).all()


def test_one_column_and_very_many_have_none() -> None:
    split, _ = completed(0)
    one = HeldOut(
        MaskedRows(split.held_out.visible.x[:, :1], split.held_out.visible.mask[:, :1]),
        split.held_out.truth[:, :1],
        split.held_out.cells[:, :1],
    )
    train = MaskedRows(split.train.x[:, :1], split.train.mask[:, :1])
    assert choose_regression([RegressionSplit(train, split.train_x_hat[:, :1], one, 60, split.x_hat[:, :1])]) is None


def test_values_of_unobserved_cells_change_nothing() -> None:
    split, x = completed(0)
    hidden = np.where(split.train.mask, split.train.x, 1e6).astype(np.float32)
    truth = np.where(split.held_out.cells, split.held_out.truth, 1e6).astype(np.float32)
    given = MaskedRows(
        np.where(split.held_out.visible.mask, split.held_out.visible.x, -1e6), split.held_out.visible.mask
    )
    other = split._replace(
        train=MaskedRows(hidden, split.train.mask), held_out=HeldOut(given, truth, split.held_out.cells)
    )
    assert choose_regression([other]) == choose_regression([split])
    one, two = CHOICE.fit(split.train, x), CHOICE.fit(other.train, x)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))


def test_files_give_back_what_was_written_and_others_are_refused() -> None:
    train, x = table(0)
    fitted = CHOICE.fit(train, x)
    content = fitted.to_bytes()
    again = KernelRegression.from_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(again[:3], fitted[:3], strict=True))
    assert again[3:] == fitted[3:]
    for other in (
        fitted._replace(share=1.5),
        fitted._replace(observed=0.0),
        fitted._replace(dual=fitted.dual[:-1]),
        fitted._replace(support=fitted.support.double()),
        fitted._replace(dual=fitted.dual * torch.inf),
    ):
        with pytest.raises(ValueError, match=r"it holds|its shapes"):
            KernelRegression.from_bytes(other.to_bytes())
    with pytest.raises(ValueError, match="it holds no regression"):
        KernelRegression.from_bytes(content[:100])


@pytest.mark.parametrize(("n", "d", "m"), [(1527, 64, 1527), (483, 30, 483), (80_000, 100, 1000), (60_000, 784, 127)])
def test_support_rows_are_all_of_a_small_table_and_a_bounded_sample_of_a_large_one(n: int, d: int, m: int) -> None:
    rows = support_rows(n, d)
    assert len(np.unique(rows)) == m
    assert set(rows) <= set(sample_rows(n, 3000))


def test_blocks_of_cells_give_what_all_cells_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    train, x = table(0)
    rows, truth = table(1, n=50)
    fitted = CHOICE.fit(train, x)
    whole = fitted.refine(truth, rows)
    monkeypatch.setattr("vadtune.ensemble.kernel_regression._BLOCK_FLOATS", 500)
    monkeypatch.setattr("vadtune.ensemble.kernel_regression._CHUNK_FLOATS", 2000)
    np.testing.assert_allclose(fitted.refine(truth, rows), whole, rtol=1e-4, atol=1e-4)


def test_only_support_rows_are_decoded_from_all_latents_or_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = table(0)
    population = Population([trial_config()], train)
    population.train_epoch()
    (model,) = population.models()
    monkeypatch.setattr("vadtune.ensemble.kernel_regression._MOST_SUPPORT_CELLS", 180)
    taken = support_rows(120, 6)
    rows, x_hat = train_support(train, [model], [1.0])
    np.testing.assert_array_equal(rows.x, train.x[taken])
    np.testing.assert_allclose(x_hat, model.reconstruct_train(6)[taken], rtol=1e-5, atol=1e-6)
    sampled = replace(model, latents=model.latents[sample_rows(120, 70)])
    np.testing.assert_array_equal(train_support(train, [sampled], [1.0])[1], x_hat)


def test_a_small_gain_is_worth_its_time_on_small_tables_only() -> None:
    said: list[str] = []
    small = CHOICE._replace(gain=0.001)
    assert worth_its_time(small, 1527, 64, said.append) == small
    assert worth_its_time(CHOICE, 100_000, 100, said.append) == CHOICE
    assert not said
    assert worth_its_time(small, 100_000, 100, said.append) is None
    assert "lowers it by 0.10%" in said[0]
