"""A real tracking server behind a proxy that fails on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.search.servers import Server
from tests.tracking.flaky_proxy import FlakyProxy, at_random, failing_at
from vadtune.core.errors import TrackingError
from vadtune.tracking.store import child_runs, connect
from vadtune.tracking.sync import sync
from vadtune.tracking.writer import Tracker

pytestmark = pytest.mark.slow

TRIALS, EPOCHS = 64, 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    here = Server(tmp_path_factory.mktemp("server"))
    here.start()
    here.wait()
    yield here
    here.kill()


@pytest.mark.parametrize(
    ("ending", "fault"),
    [
        ("experiments/get-by-name", "fail"),
        ("experiments/create", "fail"),
        ("runs/create", "fail"),
        ("runs/log-batch", "fail"),
        ("runs/log-batch", "cut"),
        ("mlflow-artifacts", "fail"),
    ],
)
def test_a_search_that_cannot_start_leaves_no_run(ending: str, fault: str, server: Server, tmp_path: Path) -> None:
    experiment = f"{ending.rpartition('/')[2]}-{fault}"
    (tmp_path / "search.yaml").write_text("name: x\n")
    with failing_at(server.uri, ending, fault) as proxy:
        tracker = Tracker(MlflowClient(proxy.uri), proxy.uri, experiment, f"{experiment}-1", tmp_path)
        with pytest.raises(TrackingError, match="must do as asked, got: ") as raised:
            tracker.start(params={"a": 1}, tags={}, artifacts=[tmp_path / "search.yaml"])
        assert "\n" not in str(raised.value)
        assert proxy.counts[fault] > 1
    client = connect(server.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is None or list(client.search_runs([found.experiment_id])) == []


@pytest.mark.parametrize("ending", ["experiments/create", "runs/create"])
@pytest.mark.parametrize("fault", ["lose", "cut"])
def test_a_creation_that_is_never_answered_happens_once(
    ending: str, fault: str, server: Server, tmp_path: Path
) -> None:
    experiment = f"unanswered-{ending.partition('/')[0]}-{fault}"
    with failing_at(server.uri, ending, fault) as proxy:
        tracker = Tracker(MlflowClient(proxy.uri), proxy.uri, experiment, f"{experiment}-1", tmp_path)
        tracker.start(params={"a": 1}, tags={}, artifacts=[])
        for trial in ("a", "b"):
            tracker.start_trial(trial, f"trial-{trial}", {"model.latent": 2})
            tracker.end_trial(trial, status="FINISHED", end="completed")
        assert tracker.finish(status="FINISHED", metrics={}, tags={}, artifacts={})
        assert proxy.counts[fault] == (1 if ending == "experiments/create" else 3)
    runs = connect(server.uri).search_runs([tracker.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["trial-a", "trial-b", f"{experiment}-1"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_sixty_four_trials_through_lost_answers_cut_bodies_and_rejections(server: Server, tmp_path: Path) -> None:
    """As many runs as trials, none RUNNING, each value once, and the rejected ones in their file."""
    choose = at_random(0, lose=0.06, cut=0.06, fail=0.03, reject=0.1)
    with FlakyProxy(server.uri, choose) as proxy:
        tracker = Tracker(MlflowClient(proxy.uri), proxy.uri, "chaos", "chaos-1", tmp_path)
        tracker.start(params={"search.metric": "val_missing_rmse"}, tags={}, artifacts=[])
        for number in range(TRIALS):
            tracker.start_trial(f"t{number}", f"trial-{number:04d}", {"model.latent": number})
        for epoch in range(1, EPOCHS + 1):
            for number in range(TRIALS):
                tracker.log_metrics(f"t{number}", {"val_missing_rmse": number + epoch / 10}, epoch=epoch)
        for number in range(TRIALS):
            tracker.end_trial(f"t{number}", status="FINISHED", end="completed")
        if not tracker.finish(status="FINISHED", metrics={"m": 1.0}, tags={}, artifacts={}):
            ids = {"experiment_id": tracker.experiment_id, "run_id": tracker.run_id}
            sync(tmp_path, proxy.uri, **ids)
        assert min(proxy.counts[fault] for fault in ("lose", "cut", "fail", "reject")) > 0, proxy.counts
    check_runs(server.uri, tracker, tmp_path)
    ids = {"experiment_id": tracker.experiment_id, "run_id": tracker.run_id}
    sync(tmp_path, server.uri, **ids, retry_rejected=True)
    assert not (tmp_path / "mlflow.rejected.jsonl").exists()
    client = connect(server.uri)
    for run in child_runs(client, tracker.experiment_id, tracker.run_id):
        assert (run.info.status, run.data.tags["vadtune.end"]) == ("FINISHED", "completed")
        assert len(client.get_metric_history(run.info.run_id, "val_missing_rmse")) == EPOCHS


def check_runs(uri: str, tracker: Tracker, folder: Path) -> None:
    client = connect(uri)
    assert len(client.search_runs([tracker.experiment_id], max_results=1000)) == TRIALS + 1
    runs = child_runs(client, tracker.experiment_id, tracker.run_id)
    assert len({run.info.run_name for run in runs}) == len(runs) == TRIALS
    assert "RUNNING" not in {run.info.status for run in [*runs, client.get_run(tracker.run_id)]}
    path = folder / "mlflow.rejected.jsonl"
    lines = [json.loads(line)["line"] for line in path.read_text().splitlines()] if path.exists() else []
    set_aside = [(line["trial"], line["epoch"]) for line in lines if line["op"] == "metrics"]
    assert len(set(set_aside)) == len(set_aside)
    for run in runs:
        trial = run.data.tags["vadtune.trial_id"]
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val_missing_rmse")]
        assert len(set(steps)) == len(steps), "each value once"
        # Also there: a line whose answer was lost, and which was rejected when it was sent again.
        aside = {epoch for name, epoch in set_aside if name == trial}
        assert aside | set(steps) == set(range(1, EPOCHS + 1)), "in the store or in the file"
