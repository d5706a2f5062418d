"""Whole searches, on a real Ray, a real Optuna and a real MLflow store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from vadtune.artifacts.model_folder import load_model
from vadtune.artifacts.run_folder import SNAPSHOT_FILE, run_lock
from vadtune.cli import main
from vadtune.config import REPORTED_METRICS, SCHEDULERS, parse_search
from vadtune.core.errors import ConfigError, SearchError, TrackingError, VadtuneError
from vadtune.data import load_dataset
from vadtune.search.driver.resume import resume_search
from vadtune.search.driver.run import SearchOutcome
from vadtune.search.driver.start import start_search
from vadtune.tracking.delivery import Delivery
from vadtune.tracking.queries import Trial, list_searches, list_trials, resolve_search
from vadtune.tracking.store import connect
from vadtune.training.population import Population
from vadtune.training.scoring import evaluate

pytestmark = pytest.mark.ray


def tiny(**search: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": {"source": "iris", "missing": {"ratio": 0.3}},
        "model": {
            "latent": {"int": [1, 3]},
            "layers": {"int": [0, 1]},
            "hidden": {"choice": [4, 8], "when": {"layers": ">0"}},
        },
        "train": {"epochs": 27, "kl_weight": {"loguniform": [0.05, 1]}, "net_lr": 1e-2},
        "infer": {"steps": 10},
        # One trial at a time: starting a process costs more than these trials.
        "search": {"samples": 10, "cpus_per_trial": 2, **search},
    }


class Finished:
    """A finished search and what the store holds of it."""

    def __init__(self, folder: Path, tree: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.file = parse_search(tree)
        self.outcome: SearchOutcome = start_search(self.file, storage=folder / "runs", tracking_uri=self.uri)
        self.client = connect(self.uri)
        self.search = resolve_search(self.client, self.uri, self.outcome.run)

    @property
    def trials(self) -> list[Trial]:
        return list_trials(self.client, self.search)


@pytest.fixture(scope="module")
def finished(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A search in which at least the first configuration diverges."""
    tree = tiny(initial=[{"train.net_lr": 1e30}], cpus_per_trial=1)
    tree["train"]["net_lr"] = {"choice": [1e-2, 2e-2, 3e-2, 4e-2, 1e30]}
    return Finished(tmp_path_factory.mktemp("search"), tree)


def test_the_last_snapshot_holds_of_ended_trials_what_a_resume_needs(finished: Finished) -> None:
    (path,) = finished.folder.glob(f"runs/*/{SNAPSHOT_FILE}")
    with zipfile.ZipFile(path) as archive:
        state = json.loads(archive.read("experiment_state.json"))
    results = {json.loads(trial)["trial_id"]: json.loads(metadata) for trial, metadata in state["trial_data"]}
    assert len(results) == 10
    for trial in finished.trials:
        result = results[trial.trial_id]
        assert result["metric_n_steps"] == result["metric_analysis"] == {}
        if trial.end == "completed":
            scores = {name: value for name, value in result["last_result"].items() if name != "trial_id"}
            assert scores == pytest.approx(trial.metrics)


def test_every_sample_is_a_trial_with_an_end(finished: Finished) -> None:
    trials = finished.trials
    assert [trial.name for trial in trials] == [f"trial-{number:04d}" for number in range(1, 11)]
    assert {trial.status for trial in trials} <= {"FINISHED", "KILLED", "FAILED"}
    assert finished.search.status == "FINISHED"
    assert sum(finished.outcome.counts.values()) == 10
    assert not finished.outcome.interrupted


def test_each_end_tells_its_reason(finished: Finished) -> None:
    for trial in finished.trials:
        if trial.status == "FINISHED":
            assert (trial.end, trial.epoch) == ("completed", 27)
        elif trial.status == "KILLED":
            assert trial.end == f"stopped by asha at epoch {trial.epoch}"
            assert trial.epoch in (3, 9)
        else:
            assert trial.end.startswith("diverged: train_"), trial.end
            assert trial.params["train.net_lr"] == "1e+30"
    assert {trial.status for trial in finished.trials} >= {"FINISHED", "FAILED"}


def test_divergence_is_no_failure_of_the_search(finished: Finished) -> None:
    assert finished.outcome.failures == {}
    assert finished.outcome.counts["diverged"] == sum(trial.status == "FAILED" for trial in finished.trials)


def test_trials_log_parameters_and_metrics_by_epoch(finished: Finished) -> None:
    for trial in finished.trials:
        assert ("model.hidden" in trial.params) == (trial.params["model.layers"] == "1")
        assert trial.params["data.source"] == "iris"
        if trial.status != "FAILED":
            assert set(trial.metrics) == {*REPORTED_METRICS, "epoch"}
            history = finished.client.get_metric_history(trial.run_id, "val_missing_rmse")
            steps = [metric.step for metric in history]
            assert steps == [step for step in (3, 9, 27) if step <= trial.epoch]


def test_the_parent_run_describes_the_search(finished: Finished) -> None:
    artifacts = {artifact.path for artifact in finished.client.list_artifacts(finished.search.run_id)}
    assert artifacts == {"search.yaml", "summary.json"}
    assert json.loads(finished.search.params["train.kl_weight"]) == {"loguniform": [0.05, 1]}
    assert finished.search.params["search.sampler"] == "tpe"
    hashes = json.loads(finished.search.tags["vadtune.masks"])
    assert hashes == load_dataset(finished.file.data).mask_hashes
    best = min(trial.metrics["val_missing_rmse"] for trial in finished.trials if trial.status != "FAILED")
    assert finished.client.get_run(finished.search.run_id).data.metrics["best_val_missing_rmse"] == best


def test_a_checkpoint_is_the_model_that_was_scored_whatever_ran_in_its_process_before(finished: Finished) -> None:
    """The reused actor gives what training alone gives: the same weights' score, to the last digit logged."""
    dataset = load_dataset(finished.file.data)
    scored = [trial for trial in finished.trials if trial.status != "FAILED"]
    for trial in (scored[0], scored[-1]):
        model = load_model(Path(trial.checkpoint) / "model")
        assert model.config.flat() == {key: value for key, value in model.config.flat().items() if key in trial.params}
        population = Population([model.config], dataset.train)
        population.train_until(trial.epoch)
        scores = evaluate(population, dataset.search_data)[0].scores
        assert scores["val_missing_rmse"] == pytest.approx(trial.metrics["val_missing_rmse"], rel=1e-6)
        assert scores["train_loss"] == pytest.approx(trial.metrics["train_loss"], rel=1e-6)


def test_results_export_and_retest_follow(
    finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    assert main(["results", "tiny", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert main(["export", "tiny", "--ensemble", "top:2", "--out", "best"]) == 0
    folders = sorted(path.name for path in (finished.folder / "best").iterdir())
    assert [name[:8] for name in folders] == ["01-trial", "02-trial", "ensemble"]
    command = ["retest", "best", "--ratios", "0.3,0.6", "--seeds", "2", "--baselines", "mean"]
    assert main(command) == 0
    assert "ensemble of 2 models" in capsys.readouterr().out
    logged = {artifact.path for artifact in finished.client.list_artifacts(finished.search.run_id, "retest")}
    assert {"retest/retest.csv", "retest/retest.png"} <= logged
    config = next((finished.folder / "best").glob("01-*/config.yaml"))
    assert main(["train", str(config), "train.epochs=2"]) == 0
    assert "val_missing_rmse" in json.loads(capsys.readouterr().out)


def test_resuming_a_complete_search_says_so(
    finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(finished.folder)
    with caplog.at_level("INFO"):
        assert main(["resume", finished.outcome.run]) == 0
    assert "is complete, nothing to resume" in caplog.text
    assert main(["resume", "tiny-2"]) == 2
    assert "unknown search 'tiny-2'" in capsys.readouterr().err


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "asha"])
def test_every_scheduler_brings_every_sample_to_an_end(scheduler: str, ray_here: None, tmp_path: Path) -> None:
    found = Finished(tmp_path, tiny(scheduler=scheduler, samples=5, sampler="random"))
    assert len(found.trials) == 5
    ends = {"completed"} if scheduler == "none" else {"completed", f"stopped by {scheduler}"}
    assert {trial.end.partition(" at ")[0] for trial in found.trials} <= ends
    assert any(trial.end == "completed" for trial in found.trials)


def test_searches_are_listed_and_the_unfinished_offered(
    finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    assert main(["list", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["search"], row["state"], row["trials"]) == (finished.outcome.run, "finished", 10)
    assert row["completed"] + row["stopped"] + row["failed"] == 10
    assert row["best"] == finished.outcome.best[0] if finished.outcome.best else False
    assert main(["resume"]) == 0
    assert capsys.readouterr().out == ""
    folder = finished.folder / "runs" / finished.outcome.run
    killed = finished.folder / "runs" / "tiny-killed"
    killed.mkdir()
    (killed / "run.json").write_text((folder / "run.json").read_text())
    with run_lock(killed):
        assert main(["resume"]) == 0
        assert capsys.readouterr().out == "", "it runs"
    assert main(["resume"]) == 0
    assert capsys.readouterr().out == "tiny-killed\n"
    shutil.rmtree(killed)


def test_state_and_checkpoints_may_be_kept_behind_a_uri(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    storage = (tmp_path / "bucket").as_uri()
    outcome = start_search(parse_search(tiny(samples=2, scheduler="none")), storage=storage, tracking_uri=uri)
    assert sum(outcome.counts.values()) == 2
    assert list(tmp_path.glob("bucket/*/tune/*/checkpoint_*"))
    assert (tmp_path / "runs" / outcome.run / "search.yaml").exists()
    assert main(["export", "tiny", "--out", "best"]) == 0


def test_a_vae_is_searched_the_same_way(ray_here: None, tmp_path: Path) -> None:
    tree = tiny(samples=3)
    tree["model"]["family"] = "vae"
    found = Finished(tmp_path, tree)
    assert len(found.trials) == 3
    assert all("train.latent_lr" not in trial.params for trial in found.trials)


def test_a_grid_is_searched_whole(ray_here: None, tmp_path: Path) -> None:
    tree = tiny(sampler="grid", samples=None, scheduler="none")
    tree["train"] |= {"epochs": 2, "kl_weight": {"grid": [0.1, 1.0]}}
    found = Finished(tmp_path, tree)
    assert len({tuple(sorted(trial.params.items())) for trial in found.trials}) == len(found.trials) == 3 * 2 * (1 + 2)


def test_a_time_budget_ends_a_search_and_its_best_so_far_is_exported(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny(samples=500, time_budget="20s", scheduler="none", report=500, pack=1)
    tree["train"]["epochs"] = 1_000_000  # so that the budget ends in the middle of a trial
    found = Finished(tmp_path, tree)
    assert 0 < len(found.trials) < 500
    assert found.search.status == "FINISHED"
    assert {trial.status for trial in found.trials} <= {"FINISHED", "KILLED"}
    assert sum(found.outcome.counts.values()) == len(found.trials)
    reasons = {trial.end.partition(" at epoch")[0] for trial in found.trials}
    assert reasons <= {"completed", "stopped by asha", "stopped by time budget"}
    assert "stopped by time budget" in reasons
    monkeypatch.chdir(tmp_path)
    assert main(["export", "tiny", "--ensemble", "best", "--out", "best"]) == 0
    assert found.outcome.best is not None
    (exported,) = tmp_path.glob("best/01-*")
    assert load_model(exported).feature_names


def test_a_search_whose_results_the_store_refused_is_logged_by_sync(
    ray_here: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        write = Delivery._write

        def away(delivery: Delivery, entries: Any, *args: Any) -> None:
            if not any(entry["op"] == "search" for entry in entries):  # once the search has started
                raise ConnectionError("the server is away")
            write(delivery, entries, *args)

        patch.setattr("vadtune.tracking.writer._PATIENCE", 1.0)
        patch.setattr(Delivery, "_write", away)
        found = Finished(tmp_path, tiny(samples=3))
        assert not found.outcome.logged
        assert sum(found.outcome.counts.values()) == 3
    assert f"deliver them by: vadtune sync {found.outcome.run}" in caplog.text
    monkeypatch.chdir(tmp_path)
    assert main(["sync", found.outcome.run]) == 0
    assert [trial.name for trial in found.trials] == ["trial-0001", "trial-0002", "trial-0003"]
    assert all("val_missing_rmse" in trial.metrics for trial in found.trials)
    assert resume_search(tmp_path / "runs" / found.outcome.run, tracking_uri=None) is None


def test_a_search_runs_in_one_process_only(finished: Finished) -> None:
    (folder,) = (finished.folder / "runs").iterdir()
    with run_lock(folder), pytest.raises(SearchError, match="another process runs it"):
        resume_search(folder, tracking_uri=None)


def test_resuming_with_another_store_changes_nothing(finished: Finished, tmp_path: Path) -> None:
    (folder,) = (finished.folder / "runs").iterdir()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(TrackingError, match="must exist, and does not"):
        resume_search(folder, tracking_uri=other)
    assert not (tmp_path / "other.db").exists()
    connect(other)
    with pytest.raises(TrackingError, match="does not hold the parent run"):
        resume_search(folder, tracking_uri=other)
    assert [e.name for e in connect(other).search_experiments()] == ["Default"]


@pytest.mark.parametrize("key", ["cpus_per_trial", "gpus_per_trial"])
def test_a_trial_that_could_never_start_is_refused(key: str, ray_here: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"search.{key}: must be at most the "):
        start_search(parse_search(tiny(**{key: 1000})), storage=tmp_path, tracking_uri=f"sqlite:///{tmp_path}/m.db")
    assert list(tmp_path.iterdir()) == []


def test_a_score_that_is_no_number_fails_its_trial(ray_here: None, tmp_path: Path) -> None:
    tree = tiny(samples=2, initial=[{"infer.lr": 1e30}, {"infer.lr": 0.1}])
    tree["infer"]["lr"] = {"choice": [0.1, 1e30]}
    found = Finished(tmp_path, tree)
    first, second = found.trials
    assert (first.status, first.end.partition(":")[0]) == ("FAILED", "diverged")
    assert second.status == "FINISHED"
    assert found.outcome.failures == {}


def test_a_trial_that_breaks_fails_alone_and_is_listed(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vadtune.search.trials import trainable

    class Breaks(trainable.TrainTrial):
        def step(self) -> dict[str, Any]:
            if self._population.members[0].config.model.layers:
                raise RuntimeError("no memory left")
            return super().step()

    monkeypatch.setattr("vadtune.search.trials.placement.TrainTrial", Breaks)
    found = Finished(tmp_path, tiny(samples=4, initial=[{"model.layers": 1}, {"model.layers": 0}]))
    assert "trial-0001" in found.outcome.failures
    assert "RuntimeError: no memory left" in found.outcome.failures["trial-0001"]
    by_name = {trial.name: trial for trial in found.trials}
    assert by_name["trial-0001"].status == "FAILED"
    assert by_name["trial-0001"].end.startswith("error: RuntimeError")
    assert by_name["trial-0002"].status == "FINISHED"


def test_a_search_on_a_cpu_does_not_wait_for_pytorch(tmp_path: Path) -> None:
    """Its trials need it, in processes of their own; and no store need be named."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(tiny(samples=2, cpus_per_trial=1)))
    code = (
        "import sys; from vadtune.cli import main; ended = main(['search', 'search.yaml']); "
        "print(ended, sorted({'torch', 'numba'} & {*sys.modules}))"
    )
    clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    # Before it logs that kernels will be compiled, the search asks whether Numba works.
    expected = "0 ['numba']" if "compiling machine code" in done.stderr else "0 []"
    assert done.stdout.splitlines()[-1] == expected, done.stderr
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert len(list_searches(connect(uri), uri)) == 1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"data": {"source": "file", "path": "nowhere.csv"}}, "nowhere.csv"),
        ({"model": {"latent": 2, "head": "projection"}, "data": {"source": "wine"}}, "points of two columns"),
    ],
)
def test_mistakes_are_told_before_ray_starts(
    changed: dict[str, Any], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("vadtune.search.driver.start.pending_ray")
    with pytest.raises(VadtuneError, match=error):
        start_search(parse_search({**tiny(), **changed}), storage=tmp_path / "runs", tracking_uri=None)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_started_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(VadtuneError, match="cannot be written"):
        start_search(parse_search(tiny()), storage=tmp_path / "file", tracking_uri=uri)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
