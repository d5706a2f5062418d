from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import trial_config
from tests.training.test_population import KINDS, trained
from vadtune.artifacts.model_folder import (
    MANIFEST,
    MODEL_FILES,
    find_model_folders,
    load_model,
    read_manifest,
    save_model,
    write_manifest,
)
from vadtune.config import load_trial
from vadtune.core.errors import ModelFolderError, OutputError
from vadtune.data import IncompleteDataset


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
    assert json.loads((folder / "metrics.json").read_text()) == {"val_missing_rmse": 0.5}
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
    with pytest.raises(OutputError, match="must be new or empty"):
        save_model(folder, model.with_metadata(iris.scaler, iris.feature_names), metrics={})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
