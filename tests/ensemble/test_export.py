from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from tests.conftest import trial_config
from tests.finished_search import TRIALS, FinishedSearch, finished_search
from vadtune.artifacts.held_out_predictions import load_held_out
from vadtune.artifacts.model_folder import MANIFEST, MODEL_FILES, find_model_folders, load_model, read_manifest
from vadtune.cli import main
from vadtune.config import REFITS, SELECTABLE_METRICS, load_trial
from vadtune.core.errors import ModelFolderError
from vadtune.core.metrics import score
from vadtune.data import SOURCES, IncompleteDataset, MaskedRows, load_dataset, mask_sha256
from vadtune.data import retest_masks as masks
from vadtune.data.retest_masks import MaskKey
from vadtune.ensemble.candidates import find_candidates
from vadtune.ensemble.ensemble_json import REGRESSION_FILE, read_ensemble
from vadtune.ensemble.export import export_best
from vadtune.ensemble.member_choice import MOST_FITS, Member, with_seeds
from vadtune.ensemble.model_average import ModelAverage
from vadtune.ensemble.regression_choice import RegressionChoice
from vadtune.evaluation.previews import make_preview
from vadtune.evaluation.retest import MASKS_FILE, run_retest
from vadtune.tracking.queries import find_results, ranked
from vadtune.training.population import Population
from vadtune.training.refit import same_steps

CHOICE = RegressionChoice(length=1.0, penalty=0.01, share=0.4, observed=0.5, gain=0.1)


def export(search: FinishedSearch, out: Path, *options: str) -> int:
    return main(["export", "tiny", "--tracking-uri", search.uri, "--out", str(out), *options])


def metrics_of(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_best_models_are_written_as_folders_that_stand_alone(
    search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep/best"
    assert export(search, out, "--ensemble", "top:2", "--refit", "none") == 0
    best = sorted(("trial-0001", "trial-0002", "trial-0003"), key=search.scores.__getitem__)[:2]
    folders = find_model_folders(out)
    assert [folder.name for folder in folders] == [f"01-{best[0]}", f"02-{best[1]}"]
    assert [path.name for path in out.parent.iterdir()] == ["best"], "no temporary folder may stay behind"
    for folder, name in zip(folders, best, strict=True):
        assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, MANIFEST}
        provenance = read_manifest(folder)["provenance"]
        assert provenance["mlflow_parent_run_id"] == search.run_id
        assert provenance["trial"] == name
        assert provenance["refit"] == "none"
        assert provenance["mlflow_run_id"]
        assert metrics_of(folder)["val_missing_rmse"] == pytest.approx(search.scores[name])
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


def test_an_earlier_export_is_replaced_only_with_overwrite(
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
    assert sorted(path.name[:2] for path in out.iterdir()) == ["01", "en"]
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
    config = next(out.glob("01-*")) / "config.yaml"
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


def test_trials_without_a_checkpoint_here_are_skipped_with_a_warning(
    search: FinishedSearch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, trials, metric = find_results("tiny", search.uri)
    best = ranked(trials, metric)[0]
    elsewhere = [replace(trial, checkpoint=str(tmp_path / "elsewhere")) for trial in trials]
    without_best = [gone if trial == best else trial for trial, gone in zip(trials, elsewhere, strict=True)]
    exported = export_best(run, without_best, metric=metric, ensemble="top:3", out=tmp_path / "best")
    assert {trial.name for trial in exported.trials} == {trial.name for trial in ranked(trials, metric)[1:]}
    assert f"{best.name} is skipped, its checkpoint is not here" in caplog.text
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


def test_the_ensemble_is_chosen_on_held_out_cells_and_logged(
    search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "best"
    assert export(search, out) == 0
    ensemble = read_ensemble(out)
    assert ensemble is not None
    assert (ensemble.selection, ensemble.refit) == ("greedy", "train+validation")
    assert [member.folder for member in ensemble.members] == [folder.name for folder in find_model_folders(out)]
    assert [member.rmse for member in ensemble.members] == sorted(member.rmse for member in ensemble.members)
    assert ensemble.rmse <= ensemble.best_rmse == pytest.approx(ensemble.members[0].rmse)
    assert ensemble.held_out == "held-out cells of the train and validation rows", "iris has few rows"
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"ensemble: {ensemble.line()}"
    run = MlflowClient(search.uri).get_run(search.run_id)
    assert run.data.metrics["ensemble_held_out_rmse"] == pytest.approx(ensemble.whole_rmse)
    assert run.data.metrics["ensemble_best_single_held_out_rmse"] == pytest.approx(ensemble.best_unseen_rmse)
    weights = json.loads(run.data.tags["vadtune.ensemble.weights"])
    by_trial = {
        name: sum(member.weight for member in ensemble.members if member.trial == name)
        for name in {member.trial for member in ensemble.members}
    }
    assert weights == pytest.approx(by_trial)
    assert MlflowClient(search.uri).list_artifacts(search.run_id, "best")[0].path == "best/ensemble.json"
    caplog.clear()
    assert main(["results", "tiny", "--tracking-uri", search.uri]) == 0
    assert f"its ensemble, last exported: {ensemble.line()}" in caplog.text


def test_heavy_networks_are_trained_from_several_seeds_that_share_their_weight(
    search: FinishedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vadtune.ensemble.member_choice.MOST_FITS", 12)
    assert export(search, tmp_path / "alone", "--ensemble", "best") == 0
    assert export(search, tmp_path / "best") == 0
    (alone,), folders = find_model_folders(tmp_path / "alone"), find_model_folders(tmp_path / "best")
    ensemble, first = read_ensemble(tmp_path / "best"), load_model(alone)
    assert ensemble is not None
    trials: dict[str, list[tuple[float, int]]] = {}
    for member, folder in zip(ensemble.members, folders, strict=True):
        model = load_model(folder)
        trials.setdefault(member.trial, []).append((member.weight, model.config.train.seed))
        if member.trial == ensemble.members[0].trial and model.config.train.seed == first.config.train.seed:
            assert torch.equal(model.weights, first.weights), "the first seed is that of the search"
    assert sum(weight for copies in trials.values() for weight, _ in copies) == pytest.approx(1.0)
    assert max(map(len, trials.values())) > 1
    assert len(folders) <= 12
    for copies in trials.values():
        assert len({weight for weight, _ in copies}) == 1
        assert [seed for _, seed in copies] == list(range(len(copies)))


def test_many_rows_need_no_training_to_choose_weights(
    search: FinishedSearch, tmp_path: Path, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vadtune.ensemble.member_choice.FEW_ROWS", 100)
    assert export(search, tmp_path / "best", "--refit", "none") == 0
    ensemble = read_ensemble(tmp_path / "best")
    assert ensemble is not None
    held_out = iris.search_data.validation
    predictions = [
        load_held_out(search.checkpoints / member.trial / "checkpoint_000000", held_out) for member in ensemble.members
    ]
    mean = sum(m.weight * p.astype(np.float64) for m, p in zip(ensemble.members, predictions, strict=True))
    assert ensemble.rmse == pytest.approx(np.sqrt(np.mean((mean - held_out.values) ** 2)), rel=1e-6)
    assert ensemble.cells == iris.validation.mask.sum()
    assert ensemble.members[0].rmse == pytest.approx(min(search.scores[name] for name in list(search.scores)[:3]))


@pytest.mark.parametrize("refit", ["train", "train+validation", "all-observed"])
def test_members_are_trained_again_on_the_rows_of_the_refit(
    refit: str, search: FinishedSearch, tmp_path: Path, iris: IncompleteDataset
) -> None:
    assert export(search, tmp_path / "best", "--ensemble", "top:3", "--refit", refit) == 0
    parts = [iris.train, iris.validation, iris.test_part(0.3, 0)][: REFITS.index(refit)]
    rows = MaskedRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    for folder in find_model_folders(tmp_path / "best"):
        model = load_model(folder)
        trial = read_manifest(folder)["provenance"]["trial"]
        epochs, before = TRIALS[trial][1], load_model(search.checkpoints / trial / "checkpoint_000000/model").config
        assert model.config.model == before.model
        fit = same_steps(before, epochs, rows_before=len(iris.train.x), rows=len(rows.x))
        assert model.config == fit.config
        population = Population([fit.config], rows)
        population.train_until(fit.epochs)
        (expected,) = population.models()
        assert torch.equal(model.weights, expected.weights)
        assert model.latents.shape[0] == len(rows.x)
        assert f"search_{SELECTABLE_METRICS[0]}" in metrics_of(folder), "no score of another model under its name"


def test_hidden_cells_of_test_rows_change_nothing(
    search: FinishedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members, weights and refitted parameters are bit for bit the same when hidden test cells change places."""
    found = find_results("tiny", search.uri)
    dataset = load_dataset(trial_config().data)
    source = dataset.config.load()
    test_rows = np.random.RandomState(0).permutation(len(source.x))[-len(dataset.test_truth) :]
    hidden = np.zeros(source.x.shape, dtype=bool)
    hidden[test_rows] = ~dataset.test_mask(0.3, 0)
    x = source.x.copy()
    x[hidden] = np.random.default_rng(0).permutation(x[hidden]) + 50.0

    def exported(out: Path) -> dict[str, bytes]:
        export_best(found.search, found.trials, metric=found.metric, refit="all-observed", out=out)
        return contents(out)

    before = exported(tmp_path / "before")
    monkeypatch.setattr(SOURCES["iris"], "load", lambda config: source._replace(x=x))
    assert not np.array_equal(load_dataset(dataset.config).test_truth, dataset.test_truth)
    assert exported(tmp_path / "after") == before


def test_unobserved_validation_cells_change_nothing(
    search: FinishedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_results("tiny", search.uri)
    dataset = load_dataset(trial_config().data)
    source = dataset.config.load()
    order = np.random.RandomState(0).permutation(len(source.x))
    hidden = np.zeros(source.x.shape, dtype=bool)
    n = len(dataset.train.x)
    hidden[order[:n]] = ~dataset.train.mask
    hidden[order[n : n + len(dataset.validation.x)]] = ~dataset.validation.mask
    x = np.where(hidden, 1000.0, source.x)
    export_best(found.search, found.trials, metric=found.metric, out=tmp_path / "before")
    monkeypatch.setattr(SOURCES["iris"], "load", lambda config: source._replace(x=x))
    export_best(found.search, found.trials, metric=found.metric, out=tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "before")


def test_models_that_saw_test_cells_are_retested_under_that_mask_only(
    search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str], iris: IncompleteDataset
) -> None:
    best = tmp_path / "best"
    assert export(search, best, "--refit", "all-observed") == 0
    seen = read_manifest(find_model_folders(best)[0])["provenance"]["seen_test_mask_sha256"]
    assert seen == mask_sha256(iris.test_mask(0.3, 0))
    own = ["--ratios", "0.3", "--seeds", "1", "--no-log"]
    assert main(["retest", str(best), *own]) == 0
    assert main(["plot", str(best), "--ratio", "0.3", "--out", str(tmp_path / "own.png")]) == 0
    before = sorted(path.name for path in best.iterdir())
    capsys.readouterr()
    member = str(find_model_folders(best)[-1])
    for command in (
        ["retest", str(best), "--ratios", "0.3", "--seeds", "2", "--no-log"],
        ["retest", str(best), "--ratios", "0.5", "--seeds", "1", "--no-log"],
        ["retest", member, "--ratios", "0.5", "--seeds", "1", "--no-log"],
        ["retest", str(best), "--clean", "--no-log"],
        ["plot", str(best), "--ratio", "0.3", "--seed", "1", "--out", str(tmp_path / "other.png")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "models refitted on all-observed have seen the observed cells of the test rows under their own" in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in best.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "own.png"]
    (best / MASKS_FILE).write_bytes(masks._packed({MaskKey(0.3, 0): iris.test_mask(0.3, 1)}, iris))
    assert main(["retest", str(best), *own]) == 2  # another mask under the name of the one that was seen
    assert "models refitted on all-observed have seen" in capsys.readouterr().err


def test_baselines_learn_from_the_rows_the_members_learned_from(
    search: FinishedSearch, tmp_path: Path, iris: IncompleteDataset
) -> None:
    assert export(search, tmp_path / "best") == 0
    retest = run_retest(tmp_path / "best", [0.3], [0], store_masks=False, baselines=["mean"])
    rows = np.concatenate([iris.train.x, iris.validation.x])
    part = iris.test_part(0.3, 0)
    expected = score(np.where(part.mask, part.x, np.nanmean(rows, axis=0)), iris.test_truth, ~part.mask).rmse
    assert retest.methods[-1].scores["missing_rmse"][0, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("regression", [None, CHOICE])
def test_the_exported_folder_is_one_model(
    regression: RegressionChoice | None,
    search: FinishedSearch,
    tmp_path: Path,
    iris: IncompleteDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vadtune.ensemble.member_choice.FEW_ROWS", 0)
    monkeypatch.setattr("vadtune.ensemble.member_choice.choose_regression", lambda splits: regression)
    best = tmp_path / "best"
    assert export(search, best, *(["--no-regression"] if regression is None else [])) == 0
    ensemble, folders = read_ensemble(best), find_model_folders(best)
    assert ensemble is not None
    assert len(folders) > 1
    assert len({member.weight for member in ensemble.members}) > 1
    part = iris.test_part(0.5, 1)
    x_hats = [load_model(folder).reconstruct(part) for folder in folders]
    mean = sum(m.weight * x_hat.astype(np.float64) for m, x_hat in zip(ensemble.members, x_hats, strict=True))
    average = ModelAverage.load(best)
    assert (ensemble.regression is None) == (average.regression is None) == (regression is None)
    if ensemble.regression is not None:
        trained = sum(m.weight * load_model(best / m.folder).reconstruct_train(4) for m in ensemble.members)
        rows = iris.rows_of_refit("train+validation")
        fitted = CHOICE.fit(rows, trained)
        mean = fitted.refine(mean, part)
        assert ensemble.regression.rows == len(rows.x)
        assert (ensemble.regression.share, ensemble.regression.gain) == (CHOICE.share, CHOICE.gain)
    n = len(folders)
    assert average.name == (f"{n} models + regression" if regression else f"ensemble of {n} models")
    np.testing.assert_allclose(average.reconstruct(part), mean, rtol=1e-6, atol=1e-4)  # dual weights cancel
    filled = average.fill(iris.scaler.inverse(part.x))
    imputed = iris.scaler.inverse(np.where(part.mask, part.x, mean))
    np.testing.assert_allclose(filled.x, imputed, rtol=1e-4, atol=1e-4)
    retest = run_retest(best, [0.5], [1], store_masks=False, baselines=[])
    assert [method.name for method in retest.methods] == [folders[0].name, average.name]
    errors = [score(x_hat, iris.test_truth, ~part.mask).rmse for x_hat in (x_hats[0], mean)]
    for method, error in zip(retest.methods, errors, strict=True):
        assert method.scores["missing_rmse"][0, 0] == pytest.approx(error, rel=1e-5)
    preview = make_preview(best, ratio=0.5, seed=1)
    np.testing.assert_allclose(preview.x_imputed, imputed[preview.rows], rtol=1e-4, atol=1e-4)
    # Without ensemble.json they are models that somebody put side by side.
    (best / "ensemble.json").unlink()
    alike = ModelAverage.load(best)
    assert alike.name == f"mean of {len(folders)} models"
    np.testing.assert_allclose(alike.reconstruct(part), np.mean(x_hats, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)


def test_one_model_and_its_mean_with_a_regression_are_scored_separately(
    search: FinishedSearch, tmp_path: Path, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vadtune.ensemble.member_choice.choose_regression", lambda splits: CHOICE)
    monkeypatch.setattr("vadtune.ensemble.member_choice.greedy_by_ratio", lambda gram, ratio: np.eye(len(gram))[0])
    best = tmp_path / "best"
    assert export(search, best, "--refit", "none") == 0
    (folder,) = find_model_folders(best)
    single, whole = run_retest(best, [0.5], [1], store_masks=False, baselines=[]).methods
    assert (single.name, whole.name) == (folder.name, "1 model + regression")
    assert single.scores["missing_rmse"][0, 0] != whole.scores["missing_rmse"][0, 0]
    assert single.scores["observed_rmse"][0, 0] == pytest.approx(whole.scores["observed_rmse"][0, 0], rel=1e-6)


def test_models_that_keep_a_sample_of_latents_are_exported(
    tmp_path: Path, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("vadtune.training.population", "vadtune.ensemble.candidates"):
        monkeypatch.setattr(f"{module}.MOST_LATENTS", 40)
    monkeypatch.setattr("vadtune.ensemble.member_choice.FEW_ROWS", 0)  # as it is where rows are many
    monkeypatch.setattr("vadtune.ensemble.kernel_regression._MOST_SUPPORT_CELLS", 4 * 30)
    search = finished_search(tmp_path, iris)
    best = tmp_path / "best"
    assert export(search, best) == 0
    assert {len(load_model(folder).latents) for folder in find_model_folders(best)} == {40}
    assert run_retest(best, [0.5], [1], store_masks=False, baselines=[]).headline.scores["missing_rmse"].shape == (1, 1)


def test_an_export_from_before_there_were_regressions_is_read(search: FinishedSearch, tmp_path: Path) -> None:
    best = tmp_path / "best"
    assert export(search, best, "--no-regression") == 0
    path = best / "ensemble.json"
    content = json.loads(path.read_text())
    del content["regression"], content["sha256"]
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": sha256}))
    assert ModelAverage.load(best).regression is None


@pytest.mark.parametrize("harm", ["altered", "missing", "bytes"])
def test_an_altered_regression_is_refused(
    harm: str,
    search: FinishedSearch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vadtune.ensemble.member_choice.choose_regression", lambda splits: CHOICE)
    best = tmp_path / "best"
    assert export(search, best, "--refit", "none") == 0
    path, described = best / REGRESSION_FILE, best / "ensemble.json"
    match harm:
        case "altered":
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
        case "missing":
            path.unlink()
        case "bytes":  # by somebody who makes both hashes fit
            path.write_bytes(b"no tensors")
            content = json.loads(described.read_text())
            content["regression"]["sha256"] = hashlib.sha256(b"no tensors").hexdigest()
            del content["sha256"]
            sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            described.write_text(json.dumps({**content, "sha256": sha256}))
    capsys.readouterr()
    assert main(["retest", str(best), "--no-log"]) == 2
    error = capsys.readouterr().err
    assert REGRESSION_FILE in error
    assert "export the models again" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("harm", ["weight", "sum", "traversal", "gone", "added", "manifest", "version", "text", "deep"])
def test_an_altered_ensemble_is_refused(
    harm: str, search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best"
    assert export(search, best, "--ensemble", "top:2", "--refit", "none") == 0
    path = best / "ensemble.json"
    content = json.loads(path.read_text())
    first, second = content["members"]

    def rewritten(**changed: object) -> str:
        """What somebody writes who makes the hash fit."""
        new = {key: value for key, value in {**content, **changed}.items() if key != "sha256"}
        sha256 = hashlib.sha256(json.dumps(new, sort_keys=True).encode()).hexdigest()
        return json.dumps({**new, "sha256": sha256})

    match harm:
        case "weight":
            path.write_text(path.read_text().replace('"weight": 0.5', '"weight": 0.75'))
        case "sum":
            path.write_text(rewritten(members=[{**first, "weight": 0.9}, second]))
        case "traversal":
            path.write_text(rewritten(members=[{**first, "folder": f"../best/{first['folder']}"}, second]))
        case "gone":
            shutil.rmtree(best / second["folder"])
        case "added":
            shutil.copytree(best / first["folder"], best / "3-more")
        case "manifest":
            manifest = best / second["folder"] / MANIFEST
            manifest.write_text(manifest.read_text().replace('"refit": "none"', '"refit": "nine"'))
        case "version":
            path.write_text(rewritten(format_version=2))
        case "text":
            path.write_text(rewritten(rmse="low"))
        case "deep":
            path.write_text("[" * 100_000)
    capsys.readouterr()
    for command in (["retest", str(best), "--no-log"], ["plot", str(best), "--out", str(tmp_path / "x.png")]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "export the models again" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_members_are_repeated_with_other_seeds_within_the_epochs_allowed(
    search: FinishedSearch, tmp_path: Path
) -> None:
    found = find_results("tiny", search.uri)
    candidates, _ = find_candidates("tiny", found.trials, found.metric, 4, tmp_path)
    network = next(candidate for candidate in candidates if not candidate.config.model.closed_form)
    for most, count in ((math.inf, MOST_FITS), (2 * network.trial.epoch, 2), (0, 1)):
        members = with_seeds([Member(network, 1.0, 0.1)], most)
        assert len({member.candidate.config.train.seed for member in members}) == len(members) == count
        assert sum(member.weight for member in members) == pytest.approx(1)
