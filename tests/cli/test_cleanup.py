"""Pruning and deleting searches: what goes, what stays, and that nothing else is touched."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.finished_search import RUN, FinishedSearch, finished_search
from vadtune.artifacts.held_out_predictions import HELD_OUT_FILE
from vadtune.artifacts.run_folder import Run, run_lock, write_run
from vadtune.cli import main
from vadtune.data import IncompleteDataset
from vadtune.ensemble.export import export_best
from vadtune.tracking.queries import find_results
from vadtune.tracking.store import connect


class Finished:
    """A finished search in a run folder, and what the commands say about it."""

    def __init__(self, folder: Path, search: FinishedSearch) -> None:
        self.folder, self.search = folder, search
        found = find_results("tiny", search.uri).search
        uri = search.uri
        write_run(folder, Run(RUN, "tiny", found.experiment_id, search.run_id, uri, str(folder / "tune")))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def models(self) -> list[str]:
        return sorted(path.parts[-3] for path in self.folder.glob("tune/*/*/model"))


@pytest.fixture
def finished(tmp_path: Path, iris: IncompleteDataset) -> Finished:
    return Finished(tmp_path, finished_search(tmp_path, iris))


def test_prune_keeps_the_best_models_and_all_predictions(finished: Finished, tmp_path: Path) -> None:
    ranking = sorted(["trial-0001", "trial-0002", "trial-0003"], key=finished.search.scores.__getitem__)
    (finished.folder / "tune" / ranking[1] / "checkpoint_000007").mkdir()  # of before or after its last one
    before = find_results("tiny", finished.search.uri)
    assert main(["prune", str(finished.folder), "--keep", "2"]) == 2
    assert len(finished.models()) == 4, "nothing is deleted without --yes"
    assert main(["prune", str(finished.folder), "--keep", "2", "--yes"]) == 0
    assert finished.models() == sorted(ranking[:2])
    assert len(list(finished.folder.glob(f"tune/*/*/{HELD_OUT_FILE}"))) == 4
    assert not (finished.folder / "tune" / ranking[1] / "checkpoint_000007").exists()
    assert find_results("tiny", finished.search.uri) == before
    options = {"metric": before.metric, "ensemble": "top:3", "refit": "none"}
    exported = export_best(before.search, before.trials, out=tmp_path / "best", **options)
    assert sorted(trial.name for trial in exported.trials) == sorted(ranking[:2])


def test_prune_keeps_what_export_chooses_from(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished.files()
    assert main(["prune", str(finished.folder), "--yes"]) == 0
    gone = before - finished.files()
    assert gone
    assert all("trial-0004/" in name for name in gone), "the model of the trial that failed"
    assert main(["prune", str(finished.folder), "--yes"]) == 0
    assert capsys.readouterr().out.count("deleted") == 1, "the second time there is nothing"


def test_an_unfinished_search_is_not_pruned(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    with (finished.folder / "mlflow.jsonl").open("a") as spool:
        spool.write('{"op":"reopen","time":1}\n')
    assert main(["prune", str(finished.folder), "--yes"]) == 2
    assert "must be finished to be pruned" in capsys.readouterr().err
    assert len(finished.models()) == 4


def test_delete_removes_folder_and_runs_and_follows_no_link(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "file").write_text("of somebody")
    (finished.folder / "tune" / "link").symlink_to(other)
    (finished.folder / "notes.txt").write_text("of the user")
    with run_lock(finished.folder):
        assert main(["delete", str(finished.folder), "--yes"]) == 2
    assert main(["delete", str(finished.folder), "--mlflow"]) == 2
    client = connect(finished.search.uri)
    assert len(client.search_runs(["1"])) == 5
    assert main(["delete", str(finished.folder), "--mlflow", "--yes"]) == 0
    assert client.search_runs(["1"]) == []
    left = {path.name for path in finished.folder.iterdir()} - {"mlruns"}
    assert left == {"notes.txt", "mlflow.db"}, "what no search wrote stays"
    assert (other / "file").read_text() == "of somebody"


@pytest.mark.parametrize("command", ["prune", "delete"])
def test_only_run_folders_are_touched(
    command: str, finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = finished.files()
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    assert main([command, str(other), "--yes"]) == 2
    assert [path.name for path in other.iterdir()] == ["file"]
    (other / "link").symlink_to(finished.folder)
    assert main([command, str(other / "link"), "--yes"]) == 2
    (finished.folder / "lock").unlink(missing_ok=True)
    (finished.folder / "lock").symlink_to(other / "file")
    assert main([command, str(finished.folder), "--yes"]) == 2
    assert finished.files() - {"lock"} == before - {"lock"}


@pytest.mark.parametrize(("answer", "is_deleted"), [("y\n", True), ("\n", False), ("", False)])
def test_a_terminal_is_asked(
    answer: str, is_deleted: bool, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert main(["delete", str(finished.folder)]) == 0
    assert (finished.folder / "run.json").exists() != is_deleted


def test_the_disk_space_of_a_search_is_listed(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(finished.folder)]
    assert main(["list", "--tracking-uri", finished.search.uri, "--format", "json", *storage]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in finished.folder.rglob("*") if path.is_file())
    assert row["disk_mb"] == pytest.approx(size / 1e6, abs=0.05)


def test_the_copy_of_a_project_is_deleted_from_its_own_store(iris: IncompleteDataset, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    search = Finished(original, finished_search(original, iris)).search
    copy = shutil.copytree(original, tmp_path / "copy")
    assert main(["delete", str(copy), "--mlflow", "--yes"]) == 0
    assert connect(search.uri).get_run(search.run_id).info.lifecycle_stage == "active"
    assert connect(f"sqlite:///{copy / 'mlflow.db'}").get_run(search.run_id).info.lifecycle_stage == "deleted"
