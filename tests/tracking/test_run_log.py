"""Results, export and retest of a search whose store is lost: from its run folder alone."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from tests.finished_search import RUN, TRIALS, FinishedSearch
from vadtune.artifacts.run_folder import Run, read_run, write_run
from vadtune.cli import main
from vadtune.core.errors import TrackingError
from vadtune.tracking.queries import find_results
from vadtune.tracking.run_log import find_results_here, read_results


@pytest.fixture
def storage(search: FinishedSearch, tmp_path: Path) -> Path:
    """The run folder of the shared search, without its store."""
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    shutil.copy(search.checkpoints.parent / "mlflow.jsonl", folder)
    found = find_results("tiny", search.uri).search
    lost = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_run(folder, Run(RUN, "tiny", found.experiment_id, found.run_id, lost, str(search.checkpoints)))
    return tmp_path / "runs"


def unreachable() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_run_folder_holds_what_the_store_holds(search: FinishedSearch, storage: Path) -> None:
    (there, expected, metric), found = find_results("tiny", search.uri), read_results(storage / RUN)
    assert found.trials == [replace(trial, run_id="") for trial in expected]
    assert (found.metric, found.search.status, found.search.run_id) == (metric, "FINISHED", there.run_id)
    assert found.search.params == there.params


@pytest.mark.parametrize("store", ["lost", "gone", "new"])
@pytest.mark.parametrize("name", ["tiny", RUN])
def test_results_are_read_from_the_run_folder(
    store: str, name: str, search: FinishedSearch, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if store == "new":  # made by another search since
        from vadtune.tracking.store import connect

        connect(f"sqlite:///{storage.parent / 'mlflow.db'}").create_experiment("other")
    uri = unreachable() if store == "gone" else f"sqlite:///{storage.parent / 'mlflow.db'}"
    arguments = ["results", name, "--tracking-uri", uri, "--storage", str(storage), "--format", "csv"]
    assert main(arguments) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert main(["results", name, "--tracking-uri", search.uri, "--format", "csv"]) == 0
    expected = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == len(TRIALS)
    assert [{**row, "mlflow_run_id": ""} for row in expected] == rows
    assert (storage.parent / "mlflow.db").exists() == (store == "new"), "reading creates no store"


def test_a_search_that_neither_has_is_still_an_error(storage: Path) -> None:
    with pytest.raises(TrackingError, match="does not exist"):
        find_results_here("other", f"sqlite:///{storage.parent / 'mlflow.db'}", storage)


@pytest.mark.slow
def test_export_and_retest_work_without_the_store(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(storage.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable())
    best = storage.parent / "best"
    assert main(["export", "tiny", "--ensemble", "best", "--refit", "none", "--out", str(best)]) == 0
    assert json.loads((best / "ensemble.json").read_text())["members"]
    assert "was not logged to MLflow" in caplog.text
    assert main(["retest", str(best), "--ratios", "0.5", "--seeds", "1", "--baselines", "none"]) == 0
    assert (best / "retest" / "retest.csv").is_file()
    assert "not logged to MLflow" in caplog.text
    assert "Traceback" not in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("version", ["now", "before"])
def test_a_search_whose_store_is_lost_is_written_into_another_one(
    version: str, search: FinishedSearch, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("search_spaces/digits.yaml", storage / RUN / "search.yaml")
    if version == "before":  # its log begins with the first trial
        log = storage / RUN / "mlflow.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    for command in ("sync", "resume"):
        assert main([command, RUN, "--storage", str(storage)]) == 2
        assert f"vadtune sync {RUN} --into URI" in capsys.readouterr().err
    other = f"sqlite:///{storage.parent / 'other.db'}"
    assert main(["sync", RUN, "--storage", str(storage), "--into", other]) == 0
    assert read_run(storage / RUN).tracking_uri == other
    (there, expected, _), (here, trials, metric) = find_results("tiny", search.uri), find_results("tiny", other)
    assert [replace(trial, run_id="") for trial in trials] == [replace(trial, run_id="") for trial in expected]
    assert (here.status, metric) == ("FINISHED", "val_missing_rmse")
    assert version == "before" or here.params == there.params
    assert main(["sync", RUN, "--storage", str(storage)]) == 0


def test_lines_are_retried_by_the_command(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, log_batch = f"sqlite:///{storage.parent / 'mlflow.db'}", MlflowClient.log_batch

    def refuse(client: MlflowClient, run_id: str, **values: Any) -> None:
        if values.get("metrics"):
            raise MlflowException("the quota is used up", error_code=INVALID_PARAMETER_VALUE)
        log_batch(client, run_id, **values)

    file = storage / RUN / "mlflow.rejected.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        assert main(["sync", RUN, "--storage", str(storage), "--into", uri]) == 0
    assert len(file.read_text().splitlines()) == len(TRIALS)
    assert not any(trial.metrics for trial in find_results("tiny", uri).trials)
    assert main(["sync", RUN, "--storage", str(storage), "--retry-rejected"]) == 0
    assert not file.exists()
    assert all(trial.metrics and trial.status != "RUNNING" for trial in find_results("tiny", uri).trials)
