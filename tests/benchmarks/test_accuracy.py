"""The comparison of accuracy: its tasks, its peers, and its arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import accuracy
import numpy as np
import pytest
from _peers import PEERS, Rows, fit_ppca, fit_soft_impute, held_out, tuned
from accuracy import Results, make_task, summarise, summary_line, task_of

from tests.conftest import trial_config
from vadtune.data import load_dataset

TABLE = np.random.default_rng(0).normal(size=(90, 3)) @ np.random.default_rng(1).normal(size=(3, 8)) + 5.0


@pytest.mark.parametrize(
    "fit", [lambda x: fit_ppca(x, 3, tolerance=1e-6), lambda x: fit_soft_impute(x, 1e-3, rounds=3000, tolerance=1e-6)]
)
def test_low_rank_rows_are_recovered(fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(150, 3)) @ rng.normal(size=(3, 30)) + 5.0
    mask = rng.random(x.shape) > 0.2
    learned = fit(np.where(mask, x, np.nan)[:100])
    error = np.abs(learned(np.where(mask, x, np.nan)) - x)[~mask]
    assert np.sqrt(np.mean(error**2)) < 0.03 * x.std()  # also of the last 50 rows, which it was not fitted on


def test_a_row_of_the_fit_is_imputed_as_in_the_completed_matrix() -> None:
    """At the minimum, what the ridge regression gives is a fixed point: filling and shrinking changes nothing."""
    mask = np.random.default_rng(3).random(TABLE.shape) > 0.3
    x = np.where(mask, TABLE, np.nan)
    share = 0.1
    z = fit_soft_impute(x, share, rounds=5000, tolerance=1e-9)(x)
    mean = np.nanmean(x, axis=0)
    penalty = share * np.linalg.norm(np.where(mask, x - mean, 0.0), 2)
    left, singular, right = np.linalg.svd(np.where(mask, x, z) - mean, full_matrices=False)
    np.testing.assert_allclose(left * np.maximum(singular - penalty, 0) @ right + mean, z, atol=1e-4)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7])
def test_rows_and_masks_are_those_of_the_published_figures_and_of_a_search(ratio: float) -> None:
    from sklearn.datasets import load_breast_cancer

    seed = 2
    task = make_task("breast_cancer", ratio, seed)
    x = load_breast_cancer().data
    parts = np.split(x[np.random.RandomState(0).permutation(len(x))], [int(0.7 * len(x)), int(0.85 * len(x))])
    parts = [(rows - parts[0].mean(0)) / parts[0].std(0) for rows in parts]
    for part, (rows, given) in enumerate(zip(parts, task.rows, strict=True)):
        mask = np.random.RandomState(1000 * seed + 17 * part + int(ratio * 100)).rand(*rows.shape) > ratio
        np.testing.assert_allclose(given, np.where(mask, rows, np.nan))
    data = trial_config(data={"source": "breast_cancer", "missing": {"ratio": ratio, "seed": seed}}).data
    accuracy.check_same_task(data, task)
    other = trial_config(data={"source": "breast_cancer", "missing": {"ratio": ratio, "seed": seed + 1}}).data
    with pytest.raises(SystemExit, match="other rows or masks"):
        accuracy.check_same_task(other, task)
    assert load_dataset(data).test_truth.shape == task.truth.shape


def test_holes_of_a_table_are_neither_given_nor_scored() -> None:
    x = TABLE.copy()
    x[np.random.default_rng(4).random(x.shape) < 0.1] = np.nan
    task = task_of(x, 0.5, 0, standardise=True)
    assert not np.isnan(task.truth[task.cells]).any()
    assert np.isnan(task.rows.test[np.isnan(task.truth)]).all()
    assert np.isnan(task.rows.test[task.cells]).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", PEERS)
def test_hidden_values_reach_no_peer(method: str) -> None:
    order = np.random.RandomState(0).permutation(len(TABLE))
    test_rows = order[int(0.85 * len(TABLE)) :]
    first = task_of(TABLE, 0.4, 0, standardise=False)
    altered = TABLE.copy()
    hidden = altered[test_rows]
    hidden[first.cells] = np.random.default_rng(5).permutation(hidden[first.cells])
    altered[test_rows] = hidden
    second = task_of(altered, 0.4, 0, standardise=False)
    found = [tuned(PEERS[method], task.rows, 0) for task in (first, second)]
    np.testing.assert_array_equal(found[0].x_hat, found[1].x_hat)
    assert first.rmse(found[0].x_hat) != second.rmse(found[1].x_hat)
    assert np.isfinite(found[0].x_hat).all()


def test_folds_hold_every_observed_cell_out_once() -> None:
    validation = task_of(TABLE, 0.4, 0, standardise=False).rows.validation
    folds = held_out(validation, 0)
    np.testing.assert_array_equal(np.sum([fold.cells for fold in folds], axis=0), ~np.isnan(validation))
    for fold in folds:
        assert np.isnan(fold.given[fold.cells]).all()
    assert len(held_out(validation, 0, enough=1)) == 1


def test_all_rows_are_learned_from_where_that_is_better() -> None:
    rows = task_of(TABLE, 0.4, 0, standardise=False).rows
    few = Rows(rows.train[:4], rows.validation, np.concatenate([rows.test, rows.train[4:]]))
    assert tuned(PEERS["ppca"], few, 0).choice.startswith("all rows")


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text("\n".join([",".join("abcdefgh"), *(",".join(map(str, row)) for row in TABLE)]))
    command = ["--tables", str(table), "--ratios", ".3", "--seeds", "2", "--out", str(tmp_path / "out")]
    accuracy.main([*command, "--methods", "mean"])
    kept = (tmp_path / "out" / "results.jsonl").read_text()
    assert len(kept.splitlines()) == 2
    (tmp_path / "out" / "results.jsonl").write_text(kept + '{"table": "cut o')
    accuracy.main([*command, "--methods", "mean,soft_impute"])
    lines = (tmp_path / "out" / "results.jsonl").read_text()
    assert lines.startswith(kept)
    done = capsys.readouterr()
    assert done.err.count(" mean ") == 2
    assert done.err.count(" soft_impute ") == 2
    assert [row["method"] for row in Results(tmp_path / "out").read()].count("soft_impute") == 2
    assert "| **" in done.out
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 10_000


def test_cells_are_summed_up_by_paired_differences() -> None:
    scores = {  # by mask seed; the best peer is the one of least mean
        0.1: {"vadtune": [0.8, 1.0, 0.9], "knn": [1.0, 1.2, 1.1], "ppca": [1.5, 1.5, 1.5]},
        0.5: {"vadtune": [1.0, 2.0, 3.0], "knn": [1.2, 1.7, 3.1], "ppca": [9.0, 9.0, 9.0]},
        0.9: {"vadtune": [1.2, 1.3], "knn": [1.0, 1.0, 5.0], "ppca": [2.0, 2.0, 2.0]},
    }
    results = [
        {"table": "t", "ratio": ratio, "seed": seed, "method": method, "rmse": rmse}
        for ratio, of_method in scores.items()
        for method, values in of_method.items()
        for seed, rmse in enumerate(values)
    ]
    low, middle, high = summarise(json.loads(json.dumps(results)), "vadtune")
    assert (low.best_peer, low.outcome, middle.outcome, high.outcome) == ("knn", "won", "tied", "lost")
    assert low.difference == pytest.approx(-0.2)
    assert low.difference_error == pytest.approx(0.0, abs=1e-12)
    assert low.error["vadtune"] == pytest.approx(0.1 / np.sqrt(3))
    assert middle.difference_error == pytest.approx(np.std([-0.2, 0.3, -0.1], ddof=1) / np.sqrt(3))
    assert high.seeds == [0, 1]  # those that all have
    assert high.ratio_to_best == pytest.approx(1.25)
    ratio = np.mean([0.9 / 1.1, 1.0, 1.25])
    assert summary_line([low, middle, high]) == (
        f"summary: mean ratio to the best peer {ratio:.3f}; of 3 cells 1 won, 1 tied within one standard error, 1 lost"
    )
