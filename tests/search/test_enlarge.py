"""A search is enlarged by a resume, and goes on as it began or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking._tracking_service import utils as client

from tests.search.test_moved import content, original, project, run_of  # noqa: F401 - a fixture is found by its name
from tests.search.test_run import tiny
from vadtune.artifacts.run_folder import SEARCH_FILE
from vadtune.cli import main
from vadtune.config import SearchFile, parse_search
from vadtune.core.errors import ConfigError, SearchError
from vadtune.search.driver.session import Session
from vadtune.search.driver.start import start_search
from vadtune.search.resume.enlarge import Enlargement, check_same_data, enlarged_search, resumed_search
from vadtune.tracking.queries import Trial, find_results
from vadtune.tracking.run_log import logged_params
from vadtune.tracking.spool import SPOOL_FILE


def begun(folder: Path, tree: dict[str, Any], *, trials: int = 0, **params: str) -> Path:
    """Writes what a resume reads of a search that began with ``tree``; keyword arguments replace logged parameters."""
    file = parse_search(tree)
    (folder / SEARCH_FILE).write_text(file.to_yaml())
    logged = logged_params(file) | {f"search.{key}": value for key, value in params.items()}
    lines: list[dict[str, Any]] = [{"op": "search", "time": 1, "params": logged, "tags": {}, "artifacts": []}]
    lines += [{"op": "start", "time": 1, "trial": f"t{n}", "name": f"t{n}", "params": {}} for n in range(trials)]
    (folder / SPOOL_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def edit(folder: Path, section: str, **values: Any) -> None:
    tree = yaml.safe_load((folder / SEARCH_FILE).read_text())
    tree.setdefault(section, {}).update(values)
    (folder / SEARCH_FILE).write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("section", "changed", "message"),
    [
        ("model", {"latent": {"int": [1, 9]}}, r"model\.latent '{\"int\": \[1, 3\]}', got '{\"int\": \[1, 9\]}'"),
        ("model", {"latent": 2}, r"model\.latent '.*', got '2'"),
        ("train", {"kl_weight": 0.5}, r"train\.kl_weight '.*', got '0\.5'"),
        ("train", {"epochs": 28}, r"train\.epochs '27', got '28'"),
        ("data", {"sample": 50}, r"data\.sample nothing, got '50'"),
        ("search", {"sampler": "random"}, r"search\.sampler 'tpe', got 'random'"),
        ("search", {"seed": 1}, r"search\.seed '0', got '1'"),
    ],
)
def test_an_edited_search_file_is_refused(section: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = begun(tmp_path, tiny())
    resumed_search(folder)
    edit(folder, section, **changed)
    with pytest.raises(SearchError, match=rf"search\.yaml: a search goes on as it began: {message}; put it back, or"):
        resumed_search(folder)


def test_how_long_a_search_runs_and_where_may_be_edited(tmp_path: Path) -> None:
    folder = begun(tmp_path, tiny())
    edit(folder, "search", samples=20, time_budget="2h", concurrency=3, cpus_per_trial=1, trial_timeout="5m")
    assert resumed_search(folder).search.samples == 20


def test_data_at_another_place_must_be_the_same(tmp_path: Path) -> None:
    tree = tiny()
    tree["data"] |= {"source": "file", "path": "/old/table.csv"}
    folder = begun(tmp_path, tree)
    log = (folder / SPOOL_FILE).read_text()
    (folder / SPOOL_FILE).write_text(log.replace('"tags": {}', '"tags": {"vadtune.masks": "{\\"train\\": \\"a\\"}"}'))
    check_same_data(folder, resumed_search(folder), {"train": "of another version of numpy"})
    edit(folder, "data", path="/new/table.csv")
    check_same_data(folder, resumed_search(folder), {"train": "a"})
    with pytest.raises(SearchError, match=r"data\.path: the data must be that of the search"):
        check_same_data(folder, resumed_search(folder), {"train": "b"})


def test_samples_and_budgets_of_search_files() -> None:
    def samples(**search: Any) -> int | None:
        return parse_search(tiny(samples=None, **search)).search.samples

    assert samples() == 64
    assert samples(time_budget="1h") is samples(gpu_hours=1, gpus_per_trial=1) is None


def test_a_search_begun_with_a_budget_by_an_earlier_version_keeps_its_64_trials(tmp_path: Path) -> None:
    folder = begun(tmp_path, tiny(samples=None, time_budget="1h"), samples="64")
    assert resumed_search(folder).search.samples == 64
    (folder / SPOOL_FILE).write_text("")  # of an even earlier one
    assert resumed_search(folder).search.samples == 64
    begun(tmp_path, tiny(samples=None, time_budget="1h"))
    assert resumed_search(folder).search.samples is None


def enlarged(folder: Path, *wanted: Any) -> SearchFile:
    return enlarged_search(folder, resumed_search(folder), Enlargement(*wanted))


def test_an_enlarged_search_has_what_was_asked_for(tmp_path: Path) -> None:
    folder = begun(tmp_path, tiny(samples=4, time_budget="1h"), trials=3)
    assert enlarged(folder, 8).search.samples == 8
    larger = enlarged(folder, None, "2h").search
    assert (larger.samples, larger.time_budget_s) == (4, 7200)
    begun(tmp_path, tiny(samples=None), trials=64)
    assert enlarged(folder, None, "2h").search.samples is None, "its file names no number"


@pytest.mark.parametrize(
    ("search", "wanted", "message"),
    [
        ({"samples": 4}, (3, None), r"--samples: counts the trials there are too, 4 so far, got 3; pass more"),
        ({"samples": 4}, (None, "2h"), r"--time-budget: .* has all its 4 trials, got 2h; pass --samples too"),
        ({"time_budget": "1h"}, (None, "30m"), r"--time-budget: counts the time .*, 1h as begun, got 30m; pass more"),
        ({"samples": 9}, (None, "soon"), r"search\.time_budget: takes a duration .*got 'soon'"),
        (
            {"sampler": "grid", "samples": 2},
            (5, None),
            r"--samples: a grid cannot be enlarged, got 5; leave it out, or",
        ),
    ],
)
def test_a_search_that_cannot_be_enlarged_says_why(
    search: dict[str, Any], wanted: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    tree = tiny(**search)
    if search.get("sampler") == "grid":
        tree["train"]["kl_weight"] = 0.1
    folder = begun(tmp_path, tree, trials=4)
    with pytest.raises(ConfigError, match=message):
        enlarged(folder, *wanted)


def test_a_resume_without_a_name_enlarges_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--samples", "4"]) == 2
    assert "--samples enlarges one search" in capsys.readouterr().err


def trials_of(folder: Path) -> list[Trial]:
    return find_results("tiny", f"sqlite:///{folder / 'mlflow.db'}").trials


@pytest.mark.ray
def test_a_finished_search_gets_more_trials_where_it_lies_now(
    original: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    shutil.copytree(original, here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(client, "_artifact_repos_cache", {}, raising=False)  # of this process, by the ids of runs
    run, before, untouched = run_of(here), trials_of(here), content(original)
    assert main(["resume", run.name, "--samples", "4"]) == 0
    after = trials_of(here)
    assert after[:2] == before
    assert [trial.name for trial in after[2:]] == ["trial-0003", "trial-0004"]
    assert {trial.end for trial in after} == {"completed"}
    assert len({repr(sorted(trial.params.items())) for trial in after}) == 4, "a configuration was tried twice"
    assert all(Path(trial.checkpoint).is_relative_to(run) for trial in after)
    assert [path.name[:11] for path in sorted(run.glob("tune/trial-*"))] == [trial.name + "-" for trial in after]
    assert yaml.safe_load((run / SEARCH_FILE).read_text())["search"]["samples"] == 4
    assert content(original) == untouched
    assert main(["resume", run.name]) == 0
    assert main(["resume", run.name, "--samples", "4"]) == 0
    assert trials_of(here) == after
    capsys.readouterr()


@pytest.mark.ray
@pytest.mark.slow
def test_a_budget_alone_is_spent_and_can_be_enlarged(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = 3  # trials after which the budget counts as used up
    monkeypatch.setattr(Session, "is_spent", property(lambda session: len(session.ended) >= ended))
    monkeypatch.chdir(tmp_path)
    tree = tiny(samples=None, time_budget="1h", cpus_per_trial=1)
    outcome = start_search(parse_search(tree), storage="runs", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    before = trials_of(tmp_path)
    assert sum(outcome.counts.values()) == len(before) >= ended
    ended = len(before) + 2
    assert main(["resume", outcome.run, "--time-budget", "2h"]) == 0
    after = trials_of(tmp_path)
    assert after[: len(before)] == before, "also those that the budget stopped"
    assert len(after) >= ended
    assert len({repr(sorted(trial.params.items())) for trial in after}) == len(after)
    capsys.readouterr()
