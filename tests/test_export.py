from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.finished_search import FinishedSearch
from vadtune.checkpoint import MANIFEST, MODEL_FILES, find_model_folders, load_model, read_manifest, read_metrics
from vadtune.cli import main
from vadtune.errors import ModelFolderError
from vadtune.export import export_best
from vadtune.results import find_results, ranked
from vadtune.search_file import load_trial


def export(search: FinishedSearch, out: Path, *options: str) -> int:
    return main(["export", "tiny", "--tracking-uri", search.uri, "--out", str(out), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_best_models_are_written_as_folders_that_stand_alone(
    search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep/best"
    assert export(search, out, "--ensemble", "top:2", "--refit", "none") == 0
    best = sorted(("trial-0001", "trial-0002", "trial-0003"), key=search.scores.__getitem__)[:2]
    folders = find_model_folders(out)
    assert [folder.name for folder in folders] == [f"1-{best[0]}", f"2-{best[1]}"]
    assert [path.name for path in out.parent.iterdir()] == ["best"], "no temporary folder may stay behind"
    for folder, name in zip(folders, best, strict=True):
        assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, MANIFEST}
        provenance = read_manifest(folder)["provenance"]
        assert provenance["mlflow_parent_run_id"] == search.run_id
        assert provenance["trial"] == name
        assert provenance["refit"] == "none"
        assert provenance["mlflow_run_id"]
        assert read_metrics(folder)["val_missing_rmse"] == pytest.approx(search.scores[name])
        assert torch.equal(
            load_model(folder).weights, load_model(search.checkpoints / name / "checkpoint_000000/model").weights
        )
        assert "torch" in json.loads((folder / "environment.json").read_text())
    *printed, last = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:4] == ["folder", "weight", "held_out_rmse", "trial"]
    assert [line.split()[0] for line in printed[1:]] == [str(folder) for folder in folders]
    assert last.startswith("ensemble: top:2, 2 models, refit on none; RMSE over ")


def test_an_exported_configuration_trains(search: FinishedSearch, tmp_path: Path) -> None:
    export(search, tmp_path / "best", "--ensemble", "best", "--refit", "none")
    (folder,) = find_model_folders(tmp_path / "best")
    assert load_trial(folder / "config.yaml").train.epochs == 4
    assert main(["train", str(folder / "config.yaml"), "train.epochs=1", "--out", str(tmp_path / "again")]) == 0
    assert load_model(tmp_path / "again").config.train.epochs == 1


def test_a_failed_trial_is_never_exported(
    search: FinishedSearch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert export(search, tmp_path / "best", "--ensemble", "top:12") == 0
    assert len(find_model_folders(tmp_path / "best")) == 3
    assert "12 models asked for, but only 3 trials have a checkpoint" in caplog.text


def test_an_earlier_export_is_replaced_only_when_told_to(
    search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best"
    export(search, out, "--ensemble", "top:3")
    (out / "retest").mkdir()
    (out / "masks.npz").write_bytes(b"of a retest")
    before = contents(out)
    assert export(search, out) == 2
    assert "holds an earlier export; replace it with --overwrite" in capsys.readouterr().err
    assert contents(out) == before
    assert export(search, out, "--ensemble", "best", "--overwrite") == 0
    assert sorted(path.name[:2] for path in out.iterdir()) == ["1-", "en"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_what_export_did_not_write_is_never_replaced(
    overwrite: list[str], search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best"
    export(search, out)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    assert export(search, out, *overwrite) == 2
    assert "must be new, empty or an earlier export, and holds notes.txt" in capsys.readouterr().err
    assert contents(out) == before

    (out / "notes.txt").unlink()
    config = next(out.glob("1-*")) / "config.yaml"
    assert main(["train", str(config), "train.epochs=1", "--out", str(out / "longer")]) == 0
    before = contents(out)
    assert export(search, out, *overwrite) == 2
    assert "must be new, empty or an earlier export, and holds longer" in capsys.readouterr().err
    assert contents(out) == before


def test_a_place_that_cannot_be_written_is_refused_before_the_store_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/best"):
        assert main(["export", "tiny", "--tracking-uri", "sqlite:///nowhere.db", "--out", str(tmp_path / out)]) == 2
        assert "another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_checkpoint_leaves_nothing_behind(search: FinishedSearch, tmp_path: Path) -> None:
    run, trials, metric = find_results("tiny", search.uri)
    second = ranked(trials, metric)[1]
    shutil.copytree(second.checkpoint, tmp_path / "damaged")
    weights = tmp_path / "damaged/model/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    trials = [replace(t, checkpoint=str(tmp_path / "damaged")) if t == second else t for t in trials]
    with pytest.raises(ModelFolderError, match=r"weights\.safetensors was altered"):
        export_best(run, trials, metric=metric, ensemble="top:3", out=tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_trials_without_a_checkpoint_here_are_passed_over_aloud(
    search: FinishedSearch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, trials, metric = find_results("tiny", search.uri)
    best = ranked(trials, metric)[0]
    elsewhere = [replace(trial, checkpoint=str(tmp_path / "elsewhere")) for trial in trials]
    without_best = [gone if trial == best else trial for trial, gone in zip(trials, elsewhere, strict=True)]
    exported = export_best(run, without_best, metric=metric, ensemble="top:3", out=tmp_path / "best")
    assert {trial.name for trial in exported.trials} == {trial.name for trial in ranked(trials, metric)[1:]}
    assert f"{best.name} is passed over, its checkpoint is not here" in caplog.text
    with pytest.raises(ModelFolderError, match="none of its 4 trials has both a score and a checkpoint"):
        export_best(run, elsewhere, metric=metric, ensemble="top:3", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_models_kept_behind_a_uri_are_fetched(search: FinishedSearch, tmp_path: Path) -> None:
    found = find_results("tiny", search.uri)
    behind = [replace(t, checkpoint=Path(t.checkpoint).as_uri() if t.checkpoint else "") for t in found.trials]
    export_best(found.search, behind, metric=found.metric, out=tmp_path / "best")
    for folder in find_model_folders(tmp_path / "best"):
        assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, MANIFEST}
    away = [replace(t, checkpoint="s3-of-nobody://bucket/x") for t in found.trials]
    with pytest.raises(ModelFolderError, match="none of its 4 trials has both a score and a checkpoint"):
        export_best(found.search, away, metric=found.metric, out=tmp_path / "other")
