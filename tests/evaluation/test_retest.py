from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from mlflow import MlflowClient

from tests.conftest import trial_config
from tests.finished_search import FinishedSearch
from vadtune.artifacts.model_folder import find_model_folders, load_model, save_model
from vadtune.cli import main
from vadtune.config import TrialConfig
from vadtune.core.errors import ConfigError, ModelFolderError
from vadtune.core.metrics import score
from vadtune.core.sampling import sample_rows
from vadtune.data import IncompleteDataset, MaskedRows, load_dataset, mask_sha256
from vadtune.data.retest_masks import MaskKey
from vadtune.evaluation.baselines import BASELINES
from vadtune.evaluation.retest import run_retest
from vadtune.evaluation.retest_scores import METRICS, Retest
from vadtune.training.population import Population

RATIOS, SEEDS = [0.3, 0.7], [0, 1, 2]


def save_trained(folder: Path, config: TrialConfig) -> None:
    dataset = load_dataset(config.data)
    population = Population([config], dataset.train)
    population.train_until(config.train.epochs)
    (model,) = population.models()
    save_model(folder, model.with_metadata(dataset.scaler, dataset.feature_names), metrics={})


@pytest.fixture
def best(tmp_path: Path) -> Path:
    save_trained(tmp_path / "best/1-a", trial_config())
    save_trained(tmp_path / "best/2-b", trial_config(model={"latent": 3, "layers": 0}))
    return tmp_path / "best"


@pytest.fixture(scope="module")
def retest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Retest]:
    best = tmp_path_factory.mktemp("retest") / "best"
    save_trained(best / "1-a", trial_config())
    save_trained(best / "2-b", trial_config(model={"family": "vae"}))
    return best, run_retest(best, RATIOS, SEEDS)


def test_every_method_is_scored_over_missing_test_cells(retest: tuple[Path, Retest]) -> None:
    best, result = retest
    dataset = load_dataset(trial_config().data)
    models = [load_model(folder) for folder in find_model_folders(best)]
    names = ["1-a", "2-b", "mean of 2 models", *BASELINES]
    assert [method.name for method in result.methods] == names
    assert [method.kind for method in result.methods] == ["model"] * 2 + ["mean of models"] + ["baseline"] * len(
        BASELINES
    )
    for i, ratio in enumerate(RATIOS):
        for j, seed in enumerate(SEEDS):
            part = dataset.test_part(ratio, seed)
            imputed = [model.impute(part) for model in models]
            expected = [
                *imputed,
                np.mean(imputed, axis=0),
                BASELINES["mean"](dataset.search_data, dataset.train)(part.x),
            ]
            for method, x_imputed in zip(result.methods, expected, strict=False):
                errors = score(x_imputed, dataset.test_truth, ~part.mask)
                assert method.scores["missing_rmse"][i, j] == pytest.approx(errors.rmse, rel=1e-4)
                assert method.scores["missing_mae"][i, j] == pytest.approx(errors.mae, rel=1e-4)
                original = score(
                    dataset.scaler.inverse(x_imputed), dataset.scaler.inverse(dataset.test_truth), ~part.mask
                )
                assert method.scores["missing_rmse_original"][i, j] == pytest.approx(original.rmse, rel=1e-4)
                assert method.scores["missing_mae_original"][i, j] == pytest.approx(original.mae, rel=1e-4)
    assert result.headline.name == "mean of 2 models"
    assert result.units == "standardised units"


def test_rows_hold_mean_and_standard_error_over_masks(retest: tuple[Path, Retest]) -> None:
    _, result = retest
    rows = result.summary()
    assert len(rows) == len(result.methods) * len(RATIOS)
    for row in rows:
        values = [
            one["missing_rmse"]
            for one in result.per_mask()
            if (one["method"], one["missing_ratio"]) == (row["method"], row["missing_ratio"])
        ]
        assert row["masks"] == len(values) == len(SEEDS)
        assert row["missing_rmse"] == pytest.approx(np.mean(values))
        assert row["missing_rmse_se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))
    assert set(rows[0]) == {
        "method",
        "kind",
        "missing_ratio",
        "masks",
        "test_rows",
        *METRICS,
        *(f"{name}_se" for name in METRICS),
    }


def test_all_methods_meet_the_same_masks(retest: tuple[Path, Retest], iris: IncompleteDataset) -> None:
    _, result = retest
    hashes = {(row["missing_ratio"], row["mask_seed"]): set() for row in result.per_mask()}
    for row in result.per_mask():
        hashes[row["missing_ratio"], row["mask_seed"]].add(row["mask_sha256"])
    assert hashes == {(ratio, seed): {mask_sha256(iris.test_mask(ratio, seed))} for ratio in RATIOS for seed in SEEDS}


def test_rows_imputed_together_or_apart_score_the_same(
    retest: tuple[Path, Retest], monkeypatch: pytest.MonkeyPatch
) -> None:
    best, together = retest
    monkeypatch.setattr("vadtune.evaluation.retest._BATCH_CELLS", 40)  # ten rows
    apart = run_retest(best, RATIOS, SEEDS)
    for one, other in zip(together.methods, apart.methods, strict=True):
        for metric in METRICS:
            np.testing.assert_allclose(one.scores[metric], other.scores[metric], rtol=1e-4, atol=1e-5)


def test_a_sample_of_the_test_rows_is_the_same_for_all_methods(best: Path, iris: IncompleteDataset) -> None:
    result = run_retest(best, [0.5], [7], baselines=["mean"], rows=8)
    assert result.rows == (8, len(iris.test_truth))
    assert result.summary()[0]["test_rows"] == 8
    mask, taken = iris.test_mask(0.5, 7), sample_rows(len(iris.test_truth), 8)
    assert result.mask_sha256[MaskKey(0.5, 7)] == mask_sha256(mask)
    part, truth = iris.test_part(0.5, 7).of_rows(taken), iris.test_truth[taken]
    model = load_model(best / "1-a").impute(part)
    mean = BASELINES["mean"](iris.search_data, iris.train)(part.x)
    for name, x_imputed in (("1-a", model), ("mean", mean)):
        (method,) = (method for method in result.methods if method.name == name)
        expected = score(x_imputed, truth, ~part.mask).rmse
        assert method.scores["missing_rmse"].item() == pytest.approx(expected, rel=1e-4)


def test_a_mask_that_hides_nothing_of_the_scored_rows_is_refused(best: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rows: a mask must hide a cell of the scored rows.*of 1 rows; score more"):
        run_retest(best, [0.05], [0], rows=1)


def test_a_single_model_has_no_mean_and_a_single_mask_no_error(best: Path) -> None:
    result = run_retest(best / "1-a", [0.5], [7], store_masks=False, baselines=["mean"])
    assert [method.name for method in result.methods] == ["1-a", "mean"]
    assert result.headline.name == "1-a"
    assert math.isnan(result.summary()[0]["missing_rmse_se"])  # type: ignore[arg-type]
    assert not (best / "1-a/masks.npz").exists()


@pytest.mark.parametrize(
    "data",
    [
        {"source": "wine"},
        {"missing": {"ratio": 0.4}},
        {"missing": {"ratio": 0.3, "seed": 1}},
        {"train_missing": "none"},
    ],
)
def test_models_of_different_data_are_not_mixed(data: dict[str, object], best: Path) -> None:
    save_trained(best / "3-c", trial_config(data=data))
    with pytest.raises(
        ModelFolderError, match=r"must share their (columns|data section.*, got source iris, .* in 1-a and)"
    ):
        run_retest(best, RATIOS, SEEDS)


def test_a_model_of_other_values_under_the_same_name_is_refused(best: Path, iris: IncompleteDataset) -> None:
    model = load_model(best / "1-a")
    assert model.scaler is not None
    shifted = type(model.scaler)(model.scaler.offset + 0.01, model.scaler.scale)
    save_model(best / "3-c", model.with_metadata(shifted, iris.feature_names), metrics={})
    with pytest.raises(ModelFolderError, match="3-c: its scaler must be that of the data it names"):
        run_retest(best, RATIOS, SEEDS)


def test_the_command_writes_tables_plot_and_masks(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["retest", str(best), "--ratios", "0.3,0.7", "--seeds", "2", "--baselines", "mean,knn", "--no-log"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("iris: RMSE over missing test cells in standardised units, by missing ratio; fitted at 0.3")
    assert {path.name for path in (best / "retest").iterdir()} == {"retest.csv", "retest_masks.csv", "retest.png"}
    assert (best / "retest/retest.png").read_bytes().startswith(b"\x89PNG")
    summary = list(csv.DictReader((best / "retest/retest.csv").read_text().splitlines()))
    assert {row["method"] for row in summary} == {"1-a", "2-b", "mean of 2 models", "mean", "knn"}
    masks = (best / "masks.npz").read_bytes()
    assert main(command) == 0
    assert capsys.readouterr().out == first, "fixed masks repeat"
    assert (best / "masks.npz").read_bytes() == masks
    assert main([*command, "--format", "json", "--out", str(best.parent / "elsewhere")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["missing_rmse"] for row in printed] == [float(row["missing_rmse"]) for row in summary]
    assert len(list((best.parent / "elsewhere").iterdir())) == 3


def test_random_masks_differ_and_repeat_by_their_seed(
    best: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    command = ["retest", str(best), "--ratios", "0.5", "--seeds", "2", "--baselines", "none", "--no-log"]
    command += ["--missing-mode", "random", "--format", "csv"]
    assert main(command) == 0
    first = capsys.readouterr().out
    (message,) = [record.message for record in caplog.records if record.message.startswith("random masks")]
    assert main(command) == 0
    assert capsys.readouterr().out != first
    assert main([*command, "--seed", message.split()[-1]]) == 0
    assert capsys.readouterr().out == first
    assert not (best / "masks.npz").exists()


def test_a_retest_is_logged_to_the_search_it_tests(
    search: FinishedSearch, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    best = tmp_path / "best"
    assert main(["export", "tiny", "--tracking-uri", search.uri, "--ensemble", "top:3", "--out", str(best)]) == 0
    command = ["retest", str(best), "--ratios", "0.3:0.7:0.4", "--seeds", "2", "--baselines", "mean"]
    capsys.readouterr()
    assert main([*command, "--tracking-uri", search.uri, "--format", "json"]) == 0
    rows = {(row["method"], row["missing_ratio"]): row for row in json.loads(capsys.readouterr().out)}
    client = MlflowClient(search.uri)
    run = client.get_run(search.run_id)
    for ratio in (0.3, 0.7):
        logged = run.data.metrics[f"retest_missing_rmse_r{ratio}"]
        assert logged == pytest.approx(rows["ensemble of 3 models", ratio]["missing_rmse"])
    assert json.loads(run.data.tags["vadtune.retest"])["mask_seeds"] == [0, 1]
    files = {file.path for file in client.list_artifacts(search.run_id, "retest")}
    assert files == {"retest/retest.csv", "retest/retest_masks.csv", "retest/retest.png"}

    caplog.clear()
    elsewhere = f"sqlite:///{tmp_path / 'other.db'}"
    assert main([*command, "--tracking-uri", elsewhere]) == 0, "a store that is gone spoils no retest"
    assert "not logged to MLflow: the tracking store" in caplog.text
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratios", "1.5"], "--ratios: takes ratios above 0 and below 1"),
        (["--seeds", "0"], "--seeds: takes a number of masks above 0, got 0"),
        (["--seed", "3"], "--seed: belongs to --missing-mode random"),
        (["--missing-mode", "random", "--seed", "-1"], "--seed: takes a whole number from 0"),
        (["--baselines", "men"], "--baselines: unknown baseline 'men': did you mean 'mean'? valid: "),
        (["--out", "{best}/1-a/config.yaml"], "cannot be written"),
        (["--clean", "--ratios", "0.5", "--seeds", "2"], "--clean: hides nothing and takes nothing about masks, got"),
        (["--save-predictions", "{best}/x.csv"], "--save-predictions: takes a file that ends in .npz or .h5, got"),
        (["--save-predictions", "{best}/1-a/config.yaml/x.npz"], "cannot be written"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(
    options: list[str], message: str, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(best.rglob("*"))
    assert main(["retest", str(best), *(option.format(best=best) for option in options)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vadtune: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(best.rglob("*")) == before


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "config.yaml"])
def test_an_incomplete_export_is_refused(name: str, best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (best / "2-b" / name).unlink()
    assert main(["retest", str(best)]) == 2
    assert name in capsys.readouterr().err
    assert sorted(path.name for path in best.iterdir()) == ["1-a", "2-b"]


def test_reconstructions_are_scored_on_observed_and_all_cells_too(retest: tuple[Path, Retest]) -> None:
    best, result = retest
    dataset = load_dataset(trial_config().data)
    part = dataset.test_part(RATIOS[1], SEEDS[2])
    x_hats = [load_model(folder).reconstruct(part) for folder in find_model_folders(best)]
    for method, x_hat in zip(result.methods, [*x_hats, np.mean(x_hats, axis=0)], strict=False):
        observed = score(x_hat, dataset.test_truth, part.mask).rmse
        everything = score(x_hat, dataset.test_truth, np.ones_like(part.mask)).rmse
        assert method.scores["observed_rmse"][1, 2] == pytest.approx(observed, rel=1e-4)
        assert method.scores["all_rmse"][1, 2] == pytest.approx(everything, rel=1e-4)
        assert method.scores["observed_mse"][1, 2] == pytest.approx(observed**2, rel=1e-4)
        assert method.scores["all_mse"][1, 2] == pytest.approx(everything**2, rel=1e-4)
    for method in result.methods:
        if method.kind == "baseline":  # it copies observed cells: an error of 0 would flatter it
            assert np.isnan(method.scores["observed_rmse"]).all()
            assert np.isnan(method.scores["all_mse"]).all()


def test_clean_rows_are_reconstructed_whole(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retest", str(best), "--clean", "--no-log", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["1-a", "2-b", "mean of 2 models"]
    dataset = load_dataset(trial_config().data)
    whole = np.ones(dataset.test_truth.shape, dtype=bool)
    x_hats = [
        load_model(folder).reconstruct(MaskedRows(dataset.test_truth, whole)) for folder in find_model_folders(best)
    ]
    for row, x_hat in zip(rows, [*x_hats, np.mean(x_hats, axis=0)], strict=True):
        errors = score(x_hat, dataset.test_truth, whole)
        assert row["all_rmse"] == pytest.approx(errors.rmse, rel=1e-4)
        assert row["all_mae"] == pytest.approx(errors.mae, rel=1e-4)
        assert row["all_mse"] == pytest.approx(errors.rmse**2, rel=1e-4)
    assert [path.name for path in (best / "retest").iterdir()] == ["clean.csv"]
    assert not (best / "masks.npz").exists()


def test_a_clean_retest_is_logged_too(
    search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best"
    assert main(["export", "tiny", "--tracking-uri", search.uri, "--ensemble", "top:3", "--out", str(best)]) == 0
    capsys.readouterr()
    command = ["retest", str(best), "--clean", "--tracking-uri", search.uri, "--format", "json"]
    assert main(command) == 0
    mean = json.loads(capsys.readouterr().out)[-1]
    run = MlflowClient(search.uri).get_run(search.run_id)
    assert run.data.metrics["retest_clean_all_rmse"] == pytest.approx(mean["all_rmse"])
    assert json.loads(run.data.tags["vadtune.retest_clean"]) == {"method": "ensemble of 3 models"}


def saved(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    with h5py.File(path) as file:
        text = {"methods", "feature_names"}
        return {name: file[name].asstr()[()] if name in text else file[name][()] for name in file}


@pytest.mark.parametrize("kind", [".npz", ".h5"])
def test_predictions_are_saved_with_their_masks(kind: str, best: Path, tmp_path: Path) -> None:
    path = tmp_path / f"predictions{kind}"
    command = ["retest", str(best), "--ratios", "0.3,0.7", "--seeds", "3", "--baselines", "mean", "--no-log"]
    assert main([*command, "--save-predictions", str(path)]) == 0
    arrays = saved(path)
    dataset = load_dataset(trial_config().data)
    assert list(arrays["methods"]) == ["1-a", "2-b", "mean of 2 models"]
    assert list(arrays["ratios"]) == RATIOS
    assert list(arrays["mask_seeds"]) == SEEDS
    assert list(arrays["feature_names"]) == dataset.feature_names
    assert arrays["rows"].tolist() == list(range(len(dataset.test_truth)))
    assert arrays["x_imputed"].shape == (3, 2, 3, *dataset.test_truth.shape)
    assert arrays["x_imputed"].dtype == np.float32
    truth = dataset.scaler.inverse(dataset.test_truth)
    np.testing.assert_allclose(arrays["x_true"], truth, rtol=1e-6)
    mask = arrays["masks"][1, 2]
    np.testing.assert_array_equal(mask, dataset.test_mask(0.7, 2))
    imputed = load_model(best / "2-b").impute(MaskedRows.hide(dataset.test_truth, mask))
    np.testing.assert_allclose(arrays["x_imputed"][1, 1, 2], dataset.scaler.inverse(imputed), rtol=1e-4, atol=1e-5)
    for of_method in arrays["x_imputed"]:
        np.testing.assert_array_equal(of_method[1, 2][mask], arrays["x_true"][mask])
    np.testing.assert_allclose(arrays["x_imputed"][2], arrays["x_imputed"][:2].mean(0), rtol=1e-4, atol=1e-5)


def test_predictions_that_are_too_large_are_refused_before_any_work(
    best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vadtune.evaluation.predictions._MOST_GB", 1e-7)
    path = best / "x.npz"
    assert main(["retest", str(best), "--ratios", "0.5", "--seeds", "2", "--save-predictions", str(path)]) == 2
    error = capsys.readouterr().err
    assert "--save-predictions: takes 1e-07 GB of imputations at most, got 0.0 GB (3 methods x 2 masks x 23" in error
    assert sorted(entry.name for entry in best.iterdir()) == ["1-a", "2-b"], "not even masks"


def test_baselines_that_are_left_out_are_named(
    best: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("vadtune.evaluation.baselines._ITERATIVE_COLUMNS", 3)
    assert main(["retest", str(best), "--ratios", "0.5", "--seeds", "1", "--no-log"]) == 0
    assert (
        "left out: iterative, iterative_trees, slow on 4 columns; to run them: --baselines mean,knn,iter" in caplog.text
    )
    summary = csv.DictReader((best / "retest/retest.csv").read_text().splitlines())
    assert [row["method"] for row in summary if row["kind"] == "baseline"] == ["mean", "knn"]
