from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import trial_config
from tests.training.test_population import KINDS, assert_same_state, trained
from vadtune.artifacts.model_folder import (
    HELD_OUT_FILE,
    MANIFEST,
    MODEL_FILES,
    find_model_folders,
    load_held_out,
    load_model,
    load_state,
    read_manifest,
    read_metrics,
    save_held_out,
    save_model,
    save_state,
    write_manifest,
)
from vadtune.config import load_trial
from vadtune.core.errors import ModelFolderError
from vadtune.data import IncompleteDataset, load_dataset, mask_sha256
from vadtune.training.population import Population


@pytest.fixture
def folder(tmp_path: Path, iris: IncompleteDataset) -> Path:
    (model,) = trained(trial_config(), iris.train).models()
    save_model(
        tmp_path / "model",
        model.with_metadata(iris.scaler, iris.feature_names),
        metrics={"val_missing_rmse": 0.5},
        provenance={"mlflow_run_id": "abc"},
    )
    return tmp_path / "model"


@pytest.mark.parametrize("model", KINDS)
def test_a_model_comes_back_as_it_was(model: dict[str, str], tmp_path: Path, iris: IncompleteDataset) -> None:
    config = trial_config(model={**model, "layers": 2})
    (before,) = trained(config, iris.train).models()
    before = before.with_metadata(iris.scaler, iris.feature_names)
    save_model(tmp_path / "m", before, metrics={})
    after = load_model(tmp_path / "m")
    assert after.config == config
    assert torch.equal(after.weights, before.weights)
    assert torch.equal(after.latents, before.latents)
    assert after.feature_names == before.feature_names
    np.testing.assert_array_equal(after.scaler.offset, iris.scaler.offset)
    part = iris.test_part(0.5, 0)
    np.testing.assert_array_equal(after.reconstruct(part), before.reconstruct(part))


def test_a_model_folder_holds_exactly_the_documented_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, MANIFEST}
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "no temporary file may stay behind"
    assert read_metrics(folder) == {"val_missing_rmse": 0.5}
    assert read_manifest(folder)["provenance"] == {"mlflow_run_id": "abc"}
    assert load_trial(folder / "config.yaml") == trial_config()
    assert find_model_folders(folder) == find_model_folders(folder.parent) == [folder]


@pytest.mark.parametrize("name", [*MODEL_FILES, MANIFEST])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=name):
        load_model(find_model_folders(folder.parent)[0])


@pytest.mark.parametrize("name", MODEL_FILES)
def test_an_altered_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match=f"{name} was altered"):
        load_model(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format_version": 1, "sha256": {}}', '{"format_version": 99, "sha256": {}}', "\x00"]
)
def test_a_broken_manifest_is_a_clear_error(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ModelFolderError, match=r"manifest\.json: cannot be read|format version 1 expected, got 99"):
        load_model(folder)


def test_files_that_do_not_fit_together_are_refused(folder: Path) -> None:
    """Even where somebody made the hashes fit."""
    import hashlib

    config = (folder / "config.yaml").read_text().replace("hidden: 8", "hidden: 9")
    (folder / "config.yaml").write_text(config)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"]["config.yaml"] = hashlib.sha256(config.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelFolderError, match="do not fit together"):
        load_model(folder)


@pytest.mark.parametrize("harm", ["narrow", "empty", "flat", "double", "scaler"])
def test_arrays_of_other_shapes_are_refused(harm: str, folder: Path) -> None:
    """Even where somebody made the hashes fit."""
    latents = load_model(folder).latents
    wrong = {"narrow": latents[:, 1:], "empty": latents[:0], "flat": latents.flatten(), "double": latents.double()}
    if harm == "scaler":
        scaler = json.loads((folder / "scaler.json").read_text())
        (folder / "scaler.json").write_text(json.dumps(scaler | {"offset": scaler["offset"][1:]}))
    else:
        save_file({"train_statistics": wrong[harm].contiguous()}, folder / "latents.safetensors")
    write_manifest(folder, {})
    with pytest.raises(ModelFolderError, match=r"do not fit together \(.* expected, got"):
        load_model(folder)


def test_no_model_folder_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not exist; write one with `vadtune export"):
        find_model_folders(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match="holds no model folder"):
        find_model_folders(tmp_path)


def test_an_occupied_folder_is_left_alone(folder: Path, iris: IncompleteDataset) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (model,) = trained(trial_config(), iris.train, epochs=1).models()
    with pytest.raises(ModelFolderError, match="must be new or empty"):
        save_model(folder, model.with_metadata(iris.scaler, iris.feature_names), metrics={})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("model", KINDS)
def test_training_resumed_from_disk_changes_nothing(
    model: dict[str, str], tmp_path: Path, iris: IncompleteDataset
) -> None:
    config = trial_config(model=model)
    save_state(tmp_path, trained(config, iris.train, epochs=2).states()[0])
    resumed = Population([config], iris.train)
    load_state(tmp_path, resumed)
    resumed.train_until(4)
    assert_same_state(trained(config, iris.train), resumed)


def test_a_damaged_training_state_is_a_clear_error(tmp_path: Path, iris: IncompleteDataset) -> None:
    population = trained(trial_config(), iris.train, epochs=1)
    save_state(tmp_path, population.states()[0])
    path = tmp_path / "training_state.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelFolderError, match="training cannot be resumed"):
            load_state(tmp_path, population)
    path.unlink()
    with pytest.raises(ModelFolderError, match="training cannot be resumed"):
        load_state(tmp_path, population)


def test_held_out_predictions_survive_and_are_of_their_cells_alone(tmp_path: Path, iris: IncompleteDataset) -> None:
    held_out = iris.search_data.validation
    predictions = np.random.default_rng(0).normal(size=len(held_out.values)).astype(np.float32)
    save_held_out(tmp_path, predictions, held_out)
    np.testing.assert_array_equal(load_held_out(tmp_path, held_out), predictions)
    other = load_dataset(trial_config(data={"holdout": {"folds": 3}}).data).search_data.validation
    assert other.cells.sum() == held_out.cells.sum()
    with pytest.raises(ModelFolderError, match="about other held-out cells than those of this data"):
        load_held_out(tmp_path, other)


@pytest.mark.parametrize(
    "harm", ["gone", "truncated", "altered", "encrypted", "short", "double", "infinite", "pickled", "bomb"]
)
def test_damaged_held_out_predictions_are_one_error(harm: str, tmp_path: Path, iris: IncompleteDataset) -> None:
    held_out = iris.search_data.validation
    predictions = np.random.default_rng(0).normal(size=len(held_out.values)).astype(np.float32)
    path, cells = tmp_path / HELD_OUT_FILE, np.array(mask_sha256(held_out.cells))
    save_held_out(tmp_path, predictions, held_out)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match harm:
        case "gone":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:100])
        case "altered":
            path.write_bytes(content)
        case "encrypted":
            content = bytearray(path.read_bytes())
            start = content.find(b"PK\x01\x02")
            while start >= 0:
                content[start + 8] |= 1  # a flag of the directory's entry
                start = content.find(b"PK\x01\x02", start + 1)
            path.write_bytes(content)
        case "short":
            np.savez(path, predictions=predictions[:-1], cells=cells)
        case "double":
            np.savez(path, predictions=predictions[: len(predictions) // 2].astype(np.float64), cells=cells)
        case "infinite":
            np.savez(path, predictions=np.full_like(predictions, np.inf), cells=cells)
        case "pickled":
            np.savez(path, predictions=np.array([{}], dtype=object), cells=cells)
        case "bomb":
            np.savez_compressed(path, predictions=np.zeros(10**7, np.float32), cells=cells)
    with pytest.raises(ModelFolderError, match=r"held_out\.npz: cannot be used \(.*\); search again"):
        load_held_out(tmp_path, held_out)
