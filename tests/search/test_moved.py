"""A search is found again after its project, or its run folder alone, was moved or copied."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking._tracking_service import utils as client

from tests.search.test_run import tiny
from vadtune.artifacts.run_folder import read_run, write_run
from vadtune.cli import main
from vadtune.config import parse_search
from vadtune.search.driver.start import start_search
from vadtune.tracking.queries import find_results
from vadtune.tracking.spool import SPOOL_FILE

pytestmark = pytest.mark.ray


def project(folder: Path) -> Path:
    """Runs a search of two trials in a new project."""
    folder.mkdir(parents=True)
    tree = tiny(samples=2, scheduler="none")
    tree["train"]["epochs"] = 2
    store = f"sqlite:///{folder / 'mlflow.db'}"
    start_search(parse_search(tree), storage=folder / "runs", tracking_uri=store)
    return folder


@pytest.fixture(scope="module")
def original(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("moved") / "project")


def run_of(project: Path) -> Path:
    (run,) = project.glob("*/tiny-*")
    return run


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """Returns hash and time of change of each file and folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


def as_of_before(run: Path, project: Path) -> None:
    """Gives a run folder and its log the absolute paths that earlier versions recorded."""
    write_run(run, replace(read_run(run), tune=str(run / "tune"), folder=""))
    data = json.loads((run / "run.json").read_text())
    del data["folder"]
    (run / "run.json").write_text(json.dumps(data))
    log = (run / SPOOL_FILE).read_text()
    (run / SPOOL_FILE).write_text(log.replace('"checkpoint":"tune/', f'"checkpoint":"{run}/tune/'))


def exported(project: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    out = project / "best"
    assert main(["export", "tiny", "--ensemble", "best", "--refit", "none", "--out", str(out), *arguments]) == 0
    assert main(["retest", str(out), "--ratios", "0.5", "--seeds", "1", "--baselines", "none"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("version", ["now", "before"])
@pytest.mark.parametrize("way", [shutil.copytree, shutil.move], ids=["copied", "moved"])
def test_a_project_works_where_it_lies_now(
    way: Callable[[Path, Path], Any],
    version: str,
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(original, tmp_path / "here")
    if version == "before":
        as_of_before(run_of(tmp_path / "here"), tmp_path / "here")
    now = tmp_path / "elsewhere" / "project"
    now.parent.mkdir()
    before = content(original), content(tmp_path / "here")
    way(tmp_path / "here", now)
    monkeypatch.chdir(now)
    monkeypatch.setattr(client, "_artifact_repos_cache", {}, raising=False)  # of this process, by the ids of runs
    run = run_of(now)
    assert main(["list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "finished"
    assert main(["results", "tiny", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 2
    assert all(Path(row["checkpoint"]).is_relative_to(run) for row in rows)
    assert all((Path(row["checkpoint"]) / "model").is_dir() for row in rows)
    assert main(["sync", run.name]) == 0
    exported(now, capsys)
    found = find_results("tiny", f"sqlite:///{now / 'mlflow.db'}").search
    assert (now / "mlruns" / "tiny" / found.run_id / "artifacts" / "best" / "ensemble.json").is_file()
    assert content(original) == before[0]
    assert not (tmp_path / "here").exists() if way is shutil.move else content(tmp_path / "here") == before[1]


def test_commands_that_read_change_nothing(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders and files are read-only for all but root, whose writes the times of change reveal."""
    shutil.copytree(original, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    run = run_of(tmp_path / "here")
    (run / "lock").unlink()
    for path in (tmp_path / "here", *(tmp_path / "here").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = content(tmp_path / "here")
    try:
        assert main(["list"]) == 0
        assert main(["results", "tiny"]) == 0
        assert main(["resume"]) == 0
        assert main(["sync", run.name]) == 0
        assert content(tmp_path / "here") == before
    finally:
        for path in (tmp_path / "here", *(tmp_path / "here").rglob("*")):
            path.chmod(0o755)


def test_a_run_folder_moved_by_itself_is_found_by_storage_or_path(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(original, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    name = run_of(tmp_path / "here").name
    shutil.move(f"runs/{name}", f"{tmp_path}/far/away/{name}")
    for arguments in (["tiny", "--storage", str(tmp_path / "far/away")], [str(tmp_path / "far" / "away" / name)]):
        assert main(["results", *arguments, "--format", "csv"]) == 0
        rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
        assert [Path(row["checkpoint"]).is_dir() for row in rows] == [True, True]
    assert main(["resume", str(tmp_path / "far" / "away" / name)]) == 0
    assert main(["sync", name, "--storage", str(tmp_path / "far" / "away")]) == 0
    exported(tmp_path / "here", capsys, "--storage", str(tmp_path / "far" / "away"))
