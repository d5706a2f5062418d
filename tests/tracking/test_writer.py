"""Writing to and reading from a real MLflow store."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from vadtune.core.errors import TrackingError
from vadtune.tracking.delivery import Delivery, log_to_run
from vadtune.tracking.queries import list_trials, resolve_search
from vadtune.tracking.redact import hide_secrets, without_secrets
from vadtune.tracking.spool import Spool, is_finished
from vadtune.tracking.store import connect, tracking_uri
from vadtune.tracking.sync import sync
from vadtune.tracking.writer import Tracker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    return connect(uri), uri


def away(*args: object, **kwargs: object) -> None:
    raise ConnectionError("the server is away")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def folder_of(store: tuple[MlflowClient, str], search: str) -> Path:
    return Path(store[1].removeprefix("sqlite:///")).parent / "runs" / search


def started(store: tuple[MlflowClient, str], experiment: str, search: str) -> Tracker:
    tracker = Tracker(*store, experiment, search, folder_of(store, search))
    tracker.start(params={"search.sampler": "tpe"}, tags={"vadtune.seed": "0"}, artifacts=[])
    return tracker


def finish(tracker: Tracker) -> None:
    summary = {"summary.json": "{}"}
    assert tracker.finish(status="FINISHED", metrics={"trials_completed": 1.0}, tags={}, artifacts=summary)


def test_a_search_is_a_parent_run_with_a_child_run_per_trial(store: tuple[MlflowClient, str]) -> None:
    client, uri = store
    tracker = started(store, "whole", "whole-1")
    for index, (status, end) in enumerate([("FINISHED", "completed"), ("KILLED", "stopped by asha at epoch 2")]):
        tracker.start_trial(f"t{index}", f"trial-{index + 1:04d}", {"model.latent": 2 + index})
        for epoch in (1, 2):
            tracker.log_metrics(f"t{index}", {"val_missing_rmse": 1.0 / epoch}, epoch=epoch)
        tracker.end_trial(f"t{index}", status=status, end=end, checkpoint=f"/c/{index}")
    finish(tracker)

    search = resolve_search(client, uri, "whole")
    assert (search.name, search.experiment, search.status) == ("whole-1", "whole", "FINISHED")
    assert resolve_search(client, uri, "whole-1") == search
    assert search.params["search.sampler"] == "tpe"
    assert {"vadtune.version.ray", "vadtune.version.torch", "vadtune.version.python", "vadtune.seed"} <= set(
        search.tags
    )
    assert [artifact.path for artifact in client.list_artifacts(search.run_id)] == ["summary.json"]

    first, second = list_trials(client, search)
    assert (first.name, first.status, first.end, first.epoch) == ("trial-0001", "FINISHED", "completed", 2)
    assert (second.status, second.end) == ("KILLED", "stopped by asha at epoch 2")
    assert first.params == {"model.latent": "2"}
    assert first.metrics["val_missing_rmse"] == 0.5
    assert first.checkpoint == "/c/0"
    history = client.get_metric_history(first.run_id, "val_missing_rmse")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]


def test_a_resumed_search_logs_nothing_twice_and_forgets_lost_trials(store: tuple[MlflowClient, str]) -> None:
    client, uri = store
    tracker = started(store, "resumed", "resumed-1")
    for trial_id in ("kept", "lost"):
        tracker.start_trial(trial_id, f"trial-{trial_id}", {"model.latent": 2})
        tracker.log_metrics(trial_id, {"val_missing_rmse": 0.5}, epoch=1)
    tracker.abandon()  # the process died: runs are left as they are

    again = Tracker(client, uri, "resumed", "resumed-1", folder_of(store, "resumed-1"))
    again.reopen(tracker.run_id, tracker.experiment_id)
    again.forget_trials_except({"kept"})
    again.start_trial("kept", "trial-kept", {"model.latent": 2})
    again.log_metrics("kept", {"val_missing_rmse": 0.5}, epoch=1)
    again.log_metrics("kept", {"val_missing_rmse": 0.4}, epoch=2)
    again.end_trial("kept", status="FINISHED", end="completed")
    finish(again)
    (trial,) = list_trials(client, resolve_search(client, uri, "resumed"))
    assert (trial.name, trial.status) == ("trial-kept", "FINISHED")
    history = client.get_metric_history(trial.run_id, "val_missing_rmse")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.4)]


def test_a_trial_that_goes_on_with_other_parameters_keeps_those_it_was_begun_with(
    store: tuple[MlflowClient, str], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = started(store, "changed", "changed-1")
    tracker.start_trial("t0", "trial-0000", {"train.lr": 0.1})
    finish(tracker)
    again = Tracker(*store, "changed", "changed-1", folder_of(store, "changed-1"))
    again.reopen(tracker.run_id, tracker.experiment_id)
    again.start_trial("t0", "trial-0000", {"train.lr": 0.2, "infer.start": "auto"})
    again.log_metrics("t0", {"val_missing_rmse": 0.5}, epoch=3)
    finish(again)
    (trial,) = list_trials(store[0], resolve_search(store[0], store[1], "changed"))
    assert trial.params == {"train.lr": "0.1", "infer.start": "auto"}
    assert trial.metrics["val_missing_rmse"] == 0.5
    assert "trial-0000 goes on with other parameters" in caplog.text


def test_the_latest_search_of_an_experiment_is_meant(store: tuple[MlflowClient, str]) -> None:
    client, uri = store
    for name in ("twice-1", "twice-2"):
        finish(started(store, "twice", name))
        time.sleep(0.01)
    assert resolve_search(client, uri, "twice").name == "twice-2"
    assert resolve_search(client, uri, "twice-1").name == "twice-1"


def test_many_metrics_are_written_in_few_commits_and_all_of_them(
    store: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, uri = store
    calls: list[int] = []
    log_batch = client.log_batch
    monkeypatch.setattr(client, "log_batch", lambda *a, **k: (calls.append(1), log_batch(*a, **k))[1])
    tracker = started(store, "many", "many-1")
    tracker.start_trial("t", "trial-0001", {})
    for epoch in range(1, 1001):
        tracker.log_metrics("t", {"a": epoch, "b": -epoch}, epoch=epoch)
    tracker.end_trial("t", status="FINISHED", end="completed")
    finish(tracker)
    (trial,) = list_trials(client, resolve_search(client, uri, "many"))
    assert len(client.get_metric_history(trial.run_id, "a")) == 1000
    assert len(calls) < 20


@pytest.mark.slow
@pytest.mark.parametrize("call", ["create_run", "log_batch"])
def test_a_store_that_fails_for_a_while_loses_nothing(
    call: str, store: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, uri = store
    tracker = started(store, f"outage-{call}", f"outage-{call}-1")
    with monkeypatch.context() as patch:
        patch.setattr(client, call, away)
        tracker.start_trial("t", "trial-0001", {"model.latent": 3})
        tracker.log_metrics("t", {"val_missing_rmse": 0.5}, epoch=1)
        time.sleep(2.2)
    assert "results are kept until it does" in caplog.text
    tracker.log_metrics("t", {"val_missing_rmse": 0.4}, epoch=2)
    tracker.end_trial("t", status="FINISHED", end="completed")
    finish(tracker)
    (trial,) = list_trials(client, resolve_search(client, uri, f"outage-{call}"))
    assert trial.params == {"model.latent": "3"}
    assert [m.step for m in client.get_metric_history(trial.run_id, "val_missing_rmse")] == [1, 2]


def test_logging_costs_the_search_almost_nothing(store: tuple[MlflowClient, str]) -> None:
    """A report only appends a line to a file: well under the budget of ten milliseconds on any machine."""
    tracker = started(store, "cost", "cost-1")
    tracker.start_trial("t", "trial-0001", {})
    start = time.process_time()
    for epoch in range(1, 201):
        tracker.log_metrics("t", dict.fromkeys("abcdefgh", 0.5), epoch=epoch)
    assert (time.process_time() - start) / 200 < 0.01
    finish(tracker)


def test_results_can_be_added_to_a_finished_run(store: tuple[MlflowClient, str], tmp_path: Path) -> None:
    client, uri = store
    finish(started(store, "later", "later-1"))
    search = resolve_search(client, uri, "later")
    (tmp_path / "retest").mkdir()
    (tmp_path / "retest" / "retest.csv").write_text("a\n")
    log_to_run(
        client, search.run_id, metrics={"x": 1.5}, tags={"k": "v"}, artifacts=[tmp_path / "retest" / "retest.csv"]
    )
    run = client.get_run(search.run_id)
    assert (run.data.metrics["x"], run.data.tags["k"], run.info.status) == (1.5, "v", "FINISHED")
    assert [artifact.path for artifact in client.list_artifacts(search.run_id, "retest")] == ["retest/retest.csv"]


def test_an_unknown_experiment_lists_those_there_are(store: tuple[MlflowClient, str]) -> None:
    client, uri = store
    finish(started(store, "known", "known-1"))
    with pytest.raises(TrackingError, match=r"unknown experiment 'knwon': did you mean 'known'\?"):
        resolve_search(client, uri, "knwon")
    with pytest.raises(TrackingError, match="unknown experiment"):
        resolve_search(client, uri, "it's; quoted")


def test_a_deleted_experiment_is_named(store: tuple[MlflowClient, str]) -> None:
    client, _ = store
    finish(started(store, "deleted", "deleted-1"))
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with pytest.raises(TrackingError, match="'deleted' must not be deleted"):
        started(store, "deleted", "deleted-2")


def test_the_store_is_the_one_given_then_the_environments_then_sqlite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri("sqlite:///x.db") == "sqlite:///x.db"
    assert tracking_uri(None) == "http://127.0.0.1:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.slow
def test_a_server_that_refuses_or_never_answers_is_named_within_ten_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        for listening in (False, True):
            if listening:
                silent.listen()
            start = time.monotonic()
            with pytest.raises(TrackingError, match=f"http://127.0.0.1:{port} must answer, got"):
                connect(f"http://127.0.0.1:{port}")
            assert time.monotonic() - start < 10


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"nowhere/mlflow\.db cannot be written"):
        connect(f"sqlite:///{tmp_path}/nowhere/mlflow.db")


def test_searches_that_create_a_store_at_once_share_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(connect, [uri] * 4))
    made = [client.create_experiment(str(number)) for number, client in enumerate(clients)]
    assert len(connect(uri).search_experiments()) == len(set(made)) + 1 == 5


def test_connecting_twice_leaves_the_experiments_as_they_are(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    connect(uri).create_experiment("mine")
    assert {experiment.name for experiment in connect(uri).search_experiments()} == {"Default", "mine"}


def test_what_a_search_logs_is_on_disk_before_the_store_has_it(
    store: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process loses nothing, and what it had delivered without noting it comes to the store once."""
    client, uri = store
    tracker = started(store, "killed", "killed-1")
    tracker.start_trial("t", "trial-0001", {"model.latent": 3})
    tracker.log_metrics("t", {"val_missing_rmse": 0.5}, epoch=1)
    wait_for(lambda: tracker._spool.undelivered == 0)
    monkeypatch.setattr(Delivery, "deliver", lambda self: False)  # the process stands still
    tracker.log_metrics("t", {"val_missing_rmse": 0.4}, epoch=2)
    monkeypatch.undo()
    (folder_of(store, "killed-1") / "mlflow.delivered").unlink()  # killed between the store's answer and the note
    with (folder_of(store, "killed-1") / "mlflow.jsonl").open("a") as file:
        file.write('{"op":"metrics","trial":"t","epoch":3,"val')  # and in the middle of a line

    again = Tracker(client, uri, "killed", "killed-1", folder_of(store, "killed-1"))
    again.reopen(tracker.run_id, tracker.experiment_id)
    again.start_trial("t", "trial-0001", {"model.latent": 3})
    for epoch, score in ((2, 0.4), (3, 0.3)):
        again.log_metrics("t", {"val_missing_rmse": score}, epoch=epoch)
    again.end_trial("t", status="FINISHED", end="completed")
    finish(again)
    (trial,) = list_trials(client, resolve_search(client, uri, "killed-1"))
    assert (trial.params, trial.status, trial.epoch) == ({"model.latent": "3"}, "FINISHED", 3)
    history = client.get_metric_history(trial.run_id, "val_missing_rmse")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.4), (3, 0.3)]


@pytest.mark.slow
def test_a_store_that_is_gone_for_good_ends_no_search_and_sync_delivers_later(
    store: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, uri = store
    folder = folder_of(store, "gone-1")
    tracker = started(store, "gone", "gone-1")
    with monkeypatch.context() as patch:
        patch.setattr("vadtune.tracking.writer._PATIENCE", 1.0)
        patch.setattr(Delivery, "_write", away)
        tracker.start_trial("t", "trial-0001", {"model.latent": 3})
        tracker.log_metrics("t", {"val_missing_rmse": 0.5}, epoch=1)
        tracker.end_trial("t", status="FINISHED", end="completed")
        assert not tracker.finish(status="FINISHED", metrics={"best": 0.5}, tags={}, artifacts={"summary.json": "{}"})
        assert is_finished(folder)
        with pytest.raises(
            TrackingError, match=f"run `vadtune sync gone-1 --storage {folder.parent} --tracking-uri {uri}` again"
        ):
            sync(folder, uri, experiment_id=tracker.experiment_id, run_id=tracker.run_id)
        tracker._drained.set()  # as if the process had ended
        tracker._thread = None
    for expected in (True, False):
        done = sync(folder, uri, experiment_id=tracker.experiment_id, run_id=tracker.run_id)
        assert (done > 0) in (expected, False)  # the thread of this very process may have been faster
    search = resolve_search(client, uri, "gone-1")
    (trial,) = list_trials(client, search)
    assert (trial.status, trial.metrics["val_missing_rmse"], search.status) == ("FINISHED", 0.5, "FINISHED")
    assert len(client.get_metric_history(trial.run_id, "val_missing_rmse")) == 1


def test_a_finished_search_leaves_statistics_for_queries(store: tuple[MlflowClient, str]) -> None:
    tracker = started(store, "counted", "counted-1")
    tracker.start_trial("t0", "trial-0000", {})
    finish(tracker)
    with contextlib.closing(sqlite3.connect(store[1].removeprefix("sqlite:///"))) as database:
        assert ("runs",) in database.execute("SELECT DISTINCT tbl FROM sqlite_stat1").fetchall()
    # MLflow still takes the store for one of its own.
    assert "counted" in {experiment.name for experiment in connect(store[1]).search_experiments()}


@pytest.mark.slow
def test_an_interrupted_search_does_not_wait_for_all_entries_to_be_delivered(
    store: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = started(store, "large", "large-1")
    create = MlflowClient.create_run

    def slow(client: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return create(client, *args, **kwargs)

    monkeypatch.setattr("vadtune.tracking.spool._CHUNK_BYTES", 1000)
    monkeypatch.setattr(MlflowClient, "create_run", slow)
    for index in range(200):
        tracker.start_trial(f"t{index}", f"trial-{index:04d}", {})
    assert not tracker.finish(status="KILLED", metrics={}, tags={}, artifacts={}, at_most=0.3)
    assert tracker._thread is not None
    tracker._thread.join(60)
    client, uri = store
    assert len(list_trials(client, resolve_search(client, uri, "large-1"))) < 200
    folder, run = folder_of(store, "large-1"), (tracker.experiment_id, tracker.run_id)
    assert sync(folder, uri, experiment_id=run[0], run_id=run[1])
    assert len(list_trials(client, resolve_search(client, uri, "large-1"))) == 200


def test_a_run_deleted_in_mlflow_holds_nothing_up(
    store: tuple[MlflowClient, str], caplog: pytest.LogCaptureFixture
) -> None:
    client, uri = store
    tracker = started(store, "removed", "removed-1")
    for trial_id in ("a", "b"):
        tracker.start_trial(trial_id, f"trial-{trial_id}", {})
    wait_for(lambda: len(list_trials(client, resolve_search(client, uri, "removed"))) == 2)
    client.delete_run(list_trials(client, resolve_search(client, uri, "removed"))[0].run_id)
    for trial_id in ("a", "b"):
        tracker.log_metrics(trial_id, {"val_missing_rmse": 0.5}, epoch=1)
    finish(tracker)
    (trial,) = list_trials(client, resolve_search(client, uri, "removed"))
    assert trial.metrics["val_missing_rmse"] == 0.5
    assert "trial-a: its run was deleted in MLflow" in caplog.text


def test_a_full_disk_keeps_lines_in_memory_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    with monkeypatch.context() as patch:

        def full(*args: object) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr("vadtune.tracking.spool.os.write", full)
        for number in range(3):
            spool.append({"op": "reopen", "time": number})
        assert spool.take() == ([], 0)
        assert spool.undelivered > 0
    spool.append({"op": "reopen", "time": 3})
    entries, mark = spool.take()
    assert [entry["time"] for entry in entries] == [0, 1, 2, 3]
    spool.mark_delivered(mark)
    assert spool.take() == ([], mark)
    assert Spool(tmp_path).take() == ([], mark)


def test_damaged_lines_are_told_apart(tmp_path: Path) -> None:
    good = [json.dumps({"op": "reopen", "time": number}) for number in (1, 2)]
    (tmp_path / "mlflow.jsonl").write_text(f'{good[0]}\nnonsense\n[1]\n{good[1]}\n{{"op":"ta')
    spool = Spool(tmp_path)
    entries, _ = spool.take()
    assert [entry.get("time") or entry["text"] for entry in entries] == [1, "nonsense", "[1]", 2]
    assert [entry["time"] for entry in spool.entries()] == [1, 2]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:hunter2@db.example:5432/mlflow", "postgresql://me:***@db.example:5432/mlflow"),
        ("https://hunter2@mlflow.example", "https://***@mlflow.example"),
        ("https://me:hunter2@mlflow.example/x", "https://me:***@mlflow.example/x"),
        ("postgresql://db/mlflow?user=me&password=hunter2", "postgresql://db/mlflow?user=me&password=***"),
        ("https://mlflow.example/?access_token=hunter2", "https://mlflow.example/?access_token=***"),
        ("https://[hunter2", "***"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgresql://me@db.example/mlflow", "postgresql://me@db.example/mlflow"),
    ],
)
def test_secrets_stay_out_of_what_is_shown(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
    assert "hunter2" not in hide_secrets(f"could not reach {uri}: no route", uri)


@pytest.mark.slow
def test_secrets_stay_out_of_errors() -> None:
    for uri in ("http://me:hunter2@127.0.0.1:9", "http://hunter2@127.0.0.1:9", "postgresql://me:hunter2@127.0.0.1:9/x"):
        with pytest.raises(TrackingError) as raised:
            connect(uri)
        assert "hunter2" not in str(raised.value)
