"""Lines that a real store rejects, runs that were deleted, and doubles: nothing holds up anything else."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import PERMISSION_DENIED, MlflowException

from tests.tracking.test_writer import finish, folder_of, started, wait_for
from vadtune.artifacts.run_folder import Run as RunFile
from vadtune.artifacts.run_folder import write_run
from vadtune.core.errors import TrackingError
from vadtune.tracking.queries import list_trials, resolve_search
from vadtune.tracking.store import PARENT, TRIAL_ID, child_runs, connect
from vadtune.tracking.sync import sync, sync_into
from vadtune.tracking.writer import Tracker

Store = tuple[MlflowClient, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    return connect(uri), uri


def rejected(store: Store, search: str) -> list[dict[str, Any]]:
    path = folder_of(store, search) / "mlflow.rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def undelivered(store: Store, search: str) -> int:
    folder = folder_of(store, search)
    return (folder / "mlflow.jsonl").stat().st_size - int((folder / "mlflow.delivered").read_text())


def runs_of(store: Store, tracker: Tracker, *, deleted: bool = False) -> list[Run]:
    return child_runs(store[0], tracker.experiment_id, tracker.run_id, deleted=deleted)


def resumed(store: Store, tracker: Tracker, experiment: str) -> Tracker:
    again = Tracker(*store, experiment, tracker.search, tracker.folder)
    again.reopen(tracker.run_id, tracker.experiment_id)
    return again


def log_trial(tracker: Tracker, trial: str, epochs: int = 3) -> None:
    tracker.start_trial(trial, f"trial-{trial}", {"model.latent": 2})
    for epoch in range(1, epochs + 1):
        tracker.log_metrics(trial, {"val_missing_rmse": 1 / epoch}, epoch=epoch)
    tracker.end_trial(trial, status="FINISHED", end="completed")


def steps(store: Store, run_id: str) -> list[int]:
    return [metric.step for metric in store[0].get_metric_history(run_id, "val_missing_rmse")]


def again(store: Store, tracker: Tracker, **options: bool) -> int:
    ids = {"experiment_id": tracker.experiment_id, "run_id": tracker.run_id}
    return sync(tracker.folder, store[1], **ids, **options)


def moved(store: Store, tracker: Tracker, experiment: str, uri: str) -> RunFile:
    run = RunFile(tracker.search, experiment, tracker.experiment_id, tracker.run_id, store[1], "")
    write_run(tracker.folder, run)
    return sync_into(tracker.folder, uri, run)


def test_a_rejected_value_is_set_aside_and_all_others_arrive(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    tracker = started(store, "poison", "poison-1")
    for trial in ("a", "b"):
        tracker.start_trial(trial, f"trial-{trial}", {"model.latent": 2})
        tracker.log_metrics(trial, {"val_missing_rmse": 1.0}, epoch=1)
    tracker.log_metrics("a", {"x" * 300: 1.0}, epoch=2)
    for trial in ("a", "b"):
        tracker.log_metrics(trial, {"val_missing_rmse": 0.5}, epoch=3)
        tracker.end_trial(trial, status="FINISHED", end="completed")
    finish(tracker)
    trials = list_trials(store[0], resolve_search(*store, "poison"))
    assert [(trial.status, trial.end, steps(store, trial.run_id)) for trial in trials] == [
        ("FINISHED", "completed", [1, 3])
    ] * 2
    (line,) = rejected(store, "poison-1")
    assert line["line"]["values"] == {"x" * 300: 1.0}
    assert "exceeds the maximum length" in line["reason"]
    assert "1 line was rejected by the store and set aside in" in caplog.text
    assert "vadtune sync poison-1 --retry-rejected" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        '{"op":"metrics","time":1,"epoch":1,"values":{"a":1}}',
        '{"op":"metrics","time":1,"trial":"a","epoch":1,"values":{"a":"x"}}',
        '{"op":"metrics","time":1,"trial":"a","epoch":1.5,"values":{"a":1}}',
        '{"op":"metrics","trial":"a","epoch":1,"values":{"a":1}}',
        '{"op":"end","time":1,"trial":"a","status":"DONE","end":"","checkpoint":""}',
        '{"op":"start","time":1,"trial":"a","name":"../a","params":{}}',
        '{"op":"start","time":1,"trial":"a","name":"a","params":[]}',
        '{"op":"finish","time":1,"status":"KILLED","metrics":{},"tags":{},"artifacts":{"../x":""}}',
        '{"op":"later","time":1}',
        '{"op":["metrics"],"time":1}',
        '{"op":"forget","time":1}',
        "[1]",
        "nonsense",
    ],
)
def test_a_damaged_line_is_set_aside(line: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = connect(uri)
    store = client, uri
    tracker = started(store, "damaged", "damaged-1")
    with (tracker.folder / "mlflow.jsonl").open("a") as file:
        file.write(line + "\n")
    tracker = resumed(store, tracker, "damaged")
    log_trial(tracker, "a")
    finish(tracker)
    (run,) = runs_of(store, tracker)
    assert steps(store, run.info.run_id) == [1, 2, 3]
    (kept,) = rejected(store, "damaged-1")
    assert kept["line"]["text"] == line
    assert kept["reason"].startswith("the line is damaged: it ")


def test_a_line_that_comes_before_the_start_of_its_trial_belongs_to_it(store: Store) -> None:
    tracker = started(store, "early", "early-1")
    tracker.tag_trial("a", {"vadtune.retries": "1 of 3"})
    wait_for(lambda: len(runs_of(store, tracker)) == 1)
    log_trial(tracker, "a")
    finish(tracker)
    (run,) = runs_of(store, tracker)
    assert (run.info.run_name, run.data.tags["vadtune.retries"]) == ("trial-a", "1 of 3")
    assert run.data.params == {"model.latent": "2"}
    assert rejected(store, "early-1") == []


def test_a_deleted_run_stays_deleted_after_a_resume_and_its_lines_are_kept(store: Store) -> None:
    tracker = started(store, "child", "child-1")
    for trial in ("a", "b"):
        tracker.start_trial(trial, f"trial-{trial}", {"model.latent": 2})
    wait_for(lambda: len(runs_of(store, tracker)) == 2)
    tracker.abandon()
    (run_id,) = [run.info.run_id for run in runs_of(store, tracker) if run.data.tags[TRIAL_ID] == "a"]
    store[0].delete_run(run_id)
    tracker = resumed(store, tracker, "child")
    for trial in ("a", "b"):
        log_trial(tracker, trial)
    finish(tracker)
    assert [run.info.run_name for run in runs_of(store, tracker)] == ["trial-b"]
    assert len(runs_of(store, tracker, deleted=True)) == 2, "none is made again"
    assert {line["reason"] for line in rejected(store, "child-1")} == {"trial-a: its run was deleted in MLflow"}
    assert len(rejected(store, "child-1")) == 5

    store[0].restore_run(run_id)
    again(store, tracker, retry_rejected=True)
    assert rejected(store, "child-1") == []
    assert steps(store, run_id) == [1, 2, 3]
    run = store[0].get_run(run_id)
    assert (run.info.status, run.data.tags["vadtune.end"]) == ("FINISHED", "completed")


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_values_of_a_deleted_search_are_kept_until_it_is_restored(
    what: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = started(store, f"gone-{what}", f"gone-{what}-1")
    tracker.start_trial("a", "trial-a", {"model.latent": 2})
    wait_for(lambda: len(runs_of(store, tracker)) == 1)
    item = tracker.run_id if what == "run" else tracker.experiment_id
    getattr(store[0], f"delete_{what}")(item)
    log_trial(tracker, "a")
    assert not tracker.finish(status="FINISHED", metrics={"m": 1.0}, tags={}, artifacts={})
    assert undelivered(store, tracker.search) > 0
    assert rejected(store, tracker.search) == []
    command = "runs restore --run-id" if what == "run" else "experiments restore --experiment-id"
    said = f"mlflow {command} {item}), or deliver the search into a new run (vadtune sync {tracker.search} --into"
    assert said in caplog.text
    with pytest.raises(TrackingError, match=f"mlflow {command} {item}"):
        again(store, tracker)
    getattr(store[0], f"restore_{what}")(item)
    assert again(store, tracker) > 0
    (run,) = runs_of(store, tracker)
    assert (run.info.status, steps(store, run.info.run_id)) == ("FINISHED", [1, 2, 3])
    parent = store[0].get_run(tracker.run_id)
    assert (parent.info.status, parent.data.metrics["m"]) == ("FINISHED", 1.0)


def test_a_search_whose_parent_run_was_deleted_goes_into_a_new_one_with_its_trials(store: Store) -> None:
    tracker = started(store, "orphans", "orphans-1")
    for trial in ("a", "b"):
        log_trial(tracker, trial)
    finish(tracker)
    store[0].delete_run(tracker.run_id)
    new = moved(store, tracker, "orphans", store[1])
    search = resolve_search(*store, "orphans-1")
    assert search.run_id == new.parent_run_id != tracker.run_id
    assert (search.status, search.params["search.sampler"], search.tags["vadtune.seed"]) == ("FINISHED", "tpe", "0")
    assert [trial.name for trial in list_trials(store[0], search)] == ["trial-a", "trial-b"]
    assert runs_of(store, tracker, deleted=True) == [], "they were not made a second time"


def test_a_search_whose_experiment_was_deleted_goes_into_a_new_one(store: Store) -> None:
    tracker = started(store, "buried", "buried-1")
    log_trial(tracker, "a")
    finish(tracker)
    store[0].delete_experiment(tracker.experiment_id)
    assert moved(store, tracker, "buried", store[1]).experiment == "buried-2"
    (trial,) = list_trials(store[0], resolve_search(*store, "buried-2"))
    assert steps(store, trial.run_id) == [1, 2, 3]


def test_a_search_is_written_into_another_store(store: Store, tmp_path: Path) -> None:
    tracker = started(store, "moved", "moved-1")
    for trial in ("a", "b", "c"):
        log_trial(tracker, trial)
    finish(tracker)
    tracker = resumed(store, tracker, "moved")
    tracker.forget_trials_except({"a", "b"})
    finish(tracker)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for _ in range(2):  # repeated: nothing twice
        new = moved(store, tracker, "moved", other)
    client = connect(other)
    here, there = resolve_search(*store, "moved"), resolve_search(client, other, "moved")
    assert (there.params, there.status) == (here.params, here.status)
    assert there.run_id == new.parent_run_id
    before, after = list_trials(store[0], here), list_trials(client, there)
    assert [(t.name, t.params, t.metrics, t.end) for t in before] == [
        (t.name, t.params, t.metrics, t.end) for t in after
    ]
    assert len(after) == 2
    history = client.get_metric_history(after[0].run_id, "val_missing_rmse")
    assert [metric.step for metric in history] == [1, 2, 3]
    tracker.experiment_id, tracker.run_id = new.experiment_id, new.parent_run_id
    assert again((client, other), tracker) == 0, "it belongs to the other store now"


@pytest.mark.slow
def test_a_run_whose_creation_was_not_answered_exists_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create, lost = MlflowClient.create_run, []

    def lose(client: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        run = create(client, *args, **kwargs)
        if len(lost) < 6 and len(lost) % 2 == 0:
            lost.append(run.info.run_id)
            raise ConnectionError("the answer is lost")
        lost.append("")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", lose)
    tracker = started(store, "unanswered", "unanswered-1")
    for trial in "abcd":
        log_trial(tracker, trial)
    finish(tracker)
    assert len(runs_of(store, tracker)) == 4
    assert len(store[0].search_runs([tracker.experiment_id])) == 5
    assert {run.info.status for run in store[0].search_runs([tracker.experiment_id])} == {"FINISHED"}


def test_doubles_are_merged_and_open_runs_ended(store: Store) -> None:
    """A creation that arrives late makes a double; a search of a killed driver leaves runs open."""
    client = store[0]
    tracker = started(store, "doubles", "doubles-1")
    for trial in ("a", "b"):
        log_trial(tracker, trial)
    tracker.start_trial("c", "trial-c", {"model.latent": 2})
    wait_for(lambda: len(runs_of(store, tracker)) == 3)
    for trial, is_empty in (("a", True), ("b", False)):
        tags = {PARENT: tracker.run_id, TRIAL_ID: trial}
        for start in (1, None):  # older and newer than the true one
            run_id = client.create_run(tracker.experiment_id, start, tags, f"trial-{trial}").info.run_id
            if not is_empty:
                client.log_batch(run_id, [Metric("val_missing_rmse", 1.0, 1, 1)], [Param("model.latent", "2")])
    client.create_run(tracker.experiment_id, tags={"vadtune.search": "doubles-1"})
    tracker._given_up.set()  # the driver is killed
    tracker = resumed(store, tracker, "doubles")
    finish(tracker)
    runs = runs_of(store, tracker)
    assert sorted(run.info.run_name for run in runs) == ["trial-a", "trial-b", "trial-c"]
    assert len(client.search_runs([tracker.experiment_id])) == 4
    assert {run.info.run_name: run.info.status for run in runs} == {
        "trial-a": "FINISHED",
        "trial-b": "FINISHED",
        "trial-c": "KILLED",
    }
    for run in runs[:2] if runs[0].info.run_name != "trial-c" else runs[1:]:
        assert run.info.run_name == "trial-c" or set(steps(store, run.info.run_id)) == {1, 2, 3}


@pytest.mark.parametrize(
    "call", ["get_experiment_by_name", "create_experiment", "create_run", "log_batch", "log_artifact"]
)
def test_a_store_that_fails_while_a_search_starts_is_one_line_and_leaves_nothing(
    call: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vadtune.config import load_search
    from vadtune.data import load_dataset
    from vadtune.search.driver.ray_start import PendingRay
    from vadtune.search.driver.run import run_search
    from vadtune.search.trials.trial_data import TrialData

    def fail(*args: object, **kwargs: object) -> None:
        raise MlflowException("the disk is full")  # as for a status of 500

    monkeypatch.setattr("vadtune.tracking.store_errors.time.sleep", lambda seconds: None)
    search = load_search("search_spaces/digits.yaml", [f"name=fails-{call}", "data.source=iris"])
    data = TrialData(load_dataset(search.data))
    monkeypatch.setattr(MlflowClient, call, fail)
    with pytest.raises(TrackingError, match="must do as asked, got: the disk is full; run the command again") as raised:
        run_search(search, data, str(tmp_path / "runs"), store[1], PendingRay(1, lambda: None))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.glob("runs/*")) == []
    monkeypatch.undo()
    found = store[0].get_experiment_by_name(f"fails-{call}")
    assert found is None or store[0].search_runs([found.experiment_id]) == []


def test_a_search_among_thousands_of_experiments_is_found(store: Store) -> None:
    tracker = started(store, "first-of-many", "first-of-many-1")
    finish(tracker)
    with contextlib.closing(sqlite3.connect(store[1].removeprefix("sqlite:///"))) as database:
        (ws,) = database.execute("SELECT workspace FROM experiments LIMIT 1").fetchone()
        database.executemany(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage, workspace, creation_time) "
            "VALUES (?, '', 'active', ?, 9000000000000)",
            [(f"other-{number}", ws) for number in range(2500)],
        )
        database.commit()
    try:
        assert resolve_search(*store, "first-of-many").name == "first-of-many-1"
        assert resolve_search(*store, "first-of-many-1").experiment == "first-of-many"
    finally:
        with contextlib.closing(sqlite3.connect(store[1].removeprefix("sqlite:///"))) as database:
            database.execute("DELETE FROM experiments WHERE name LIKE 'other-%'")
            database.commit()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("databricks", "the tracking store databricks must answer, got: .*[Cc]redential"),
        ("databricks://profile", "the tracking store databricks://profile must answer, got: .*[Cc]redential"),
        ("uc:http://127.0.0.1:1", "must answer, got: Detected Unity Catalog"),
        ("ftp://x", "must start with one of sqlite:///, .* or a scheme of an MLflow plugin, got ftp://x"),
        ("mlruns", "must start with one of sqlite:///"),
        ("file:///tmp/x", "must start with one of sqlite:///"),
    ],
)
def test_schemes_that_mlflow_knows_are_let_through(uri: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message):
        connect(uri)


def test_a_store_that_refuses_to_end_runs_holds_nothing_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise MlflowException("you may not", error_code=PERMISSION_DENIED)

    tracker = started(store, "forbidden", "forbidden-1")
    tracker.start_trial("a", "trial-a", {"model.latent": 2})
    log_trial(tracker, "b")
    monkeypatch.setattr(MlflowClient, "set_terminated", refuse)
    finish(tracker)
    assert {line["line"]["op"] for line in rejected(store, "forbidden-1")} == {"end", "finish"}
    assert "the store refuses to end or delete runs that were left open: you may not" in caplog.text
    monkeypatch.undo()
    again(store, tracker, retry_rejected=True)
    assert rejected(store, "forbidden-1") == []
    statuses = {run.info.run_name: run.info.status for run in runs_of(store, tracker)}
    assert statuses == {"trial-a": "KILLED", "trial-b": "FINISHED"}


def test_a_move_that_fails_keeps_the_lines_that_the_first_store_rejected(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracker = started(store, "half", "half-1")
    tracker.start_trial("a", "trial-a", {"model.latent": 2})
    tracker.log_metrics("a", {"x" * 300: 1.0}, epoch=1)
    finish(tracker)
    assert len(rejected(store, "half-1")) == 1

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("away")

    other = f"sqlite:///{tmp_path / 'other.db'}"
    with monkeypatch.context() as patch:
        patch.setattr("vadtune.tracking.store_errors._PAUSE", 0.0)
        patch.setattr(MlflowClient, "set_terminated", fail)
        with pytest.raises(TrackingError, match=f"vadtune sync half-1 --into {other}"):
            moved(store, tracker, "half", other)
    assert len(rejected(store, "half-1")) == 1
    assert again(store, tracker) == 0, "it still belongs to the first store"
