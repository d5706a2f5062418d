from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.finished_search import RUN, TRIALS, FinishedSearch
from vadtune.cli import main
from vadtune.core.errors import TrackingError
from vadtune.tracking.queries import find_results, ranked
from vadtune.tracking.table_rows import main_columns, trial_rows


def test_trials_are_ranked_by_the_search_metric_and_failures_have_no_rank(search: FinishedSearch) -> None:
    found = find_results("tiny", search.uri)
    assert found.search.run_id == search.run_id
    assert found.metric == "val_missing_rmse"
    best = [trial.name for trial in ranked(found.trials, found.metric)]
    assert best == sorted(("trial-0001", "trial-0002", "trial-0003"), key=search.scores.__getitem__)
    rows = trial_rows(found.trials, found.metric)
    assert [row["trial"] for row in rows] == [*best, "trial-0004"]
    assert [row["rank"] for row in rows] == [1, 2, 3, None]
    assert [row["end"] for row in rows if row["trial"] == "trial-0003"] == ["stopped by asha at epoch 1"]


def test_rows_share_their_columns_and_hold_numbers(search: FinishedSearch) -> None:
    _, trials, metric = find_results(RUN, search.uri)
    rows = trial_rows(trials, metric)
    assert len({tuple(row) for row in rows}) == 1
    by_name = {row["trial"]: row for row in rows}
    assert by_name["trial-0001"]["model.latent"] == 2
    assert by_name["trial-0001"]["infer.lr"] == 0.15
    assert by_name["trial-0001"]["model.hidden"] == 8
    assert by_name["trial-0003"]["model.hidden"] is None, "a linear decoder has no hidden layer"
    assert by_name["trial-0002"][metric] == pytest.approx(search.scores["trial-0002"])


def test_main_columns_are_those_that_tell_trials_apart(search: FinishedSearch) -> None:
    _, trials, metric = find_results("tiny", search.uri)
    columns = list(main_columns(trial_rows(trials, metric), metric)[0])
    assert columns[:5] == ["rank", "trial", "end", "epoch", metric]
    assert {"latent", "layers"} <= set(columns)
    assert not {"hidden", "net_lr"} & set(columns), "they are the same wherever they exist"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_command_writes_every_trial(
    kind: str, search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"new/trials.{kind}"  # the ending tells the format
    assert main(["results", "tiny", "--tracking-uri", search.uri, "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(out.read_text().splitlines())) if kind == "csv" else json.loads(out.read_text())
    assert {row["trial"] for row in rows} == set(TRIALS)
    assert len({row["mlflow_run_id"] for row in rows}) == len(TRIALS)
    assert main(["results", "tiny", "--tracking-uri", search.uri, "--format", kind]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_command_prints_a_table(search: FinishedSearch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "tiny", "--run", RUN, "--tracking-uri", search.uri]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["rank", "trial", "end", "epoch", "val_missing_rmse"]
    assert len(lines) == len(TRIALS)


def test_an_unknown_search_is_one_clear_line(search: FinishedSearch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "tinny", "--tracking-uri", search.uri]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vadtune: error: unknown experiment 'tinny': did you mean 'tiny'?")
    assert printed.err.count("\n") == 1


def test_asking_a_store_that_does_not_exist_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="does not exist; run this where `vadtune search` ran"):
        find_results("tiny", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_experiment_is_refused(search: FinishedSearch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "other", "--run", RUN, "--tracking-uri", search.uri]) == 2
    assert f"--run: takes a run of other, got {RUN} of tiny" in capsys.readouterr().err
