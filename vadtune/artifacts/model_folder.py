"""Model folders: a trained model on disk, in files that execute no code when they are loaded.

    config.yaml           the trial configuration, which `vadtune train` accepts
    weights.safetensors   network parameters by name, one model: weights (in, out), biases (1, out)
    latents.safetensors   posterior parameters of the train rows (m, s)
    scaler.json           offset and scale per column, and the column names
    metrics.json          the scores recorded with the model
    environment.json      versions of Python and of the packages a result depends on
    manifest.json         format version, provenance, and the SHA-256 of every other file

A trial's checkpoint holds a model folder together with its training state (``training_state.py``) and its predictions
of the held-out validation cells (``held_out_predictions.py``).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vadtune import __version__
from vadtune.config import load_trial
from vadtune.core.errors import ModelFolderError
from vadtune.core.files import new_folder
from vadtune.core.reading import SMALL_FILE, check_inside, read_bounded, sha256_of
from vadtune.core.text import one_line
from vadtune.data import Scaler
from vadtune.models import Architecture, Family, build_family
from vadtune.training.inference import FittedModel

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILES = (
    *("config.yaml", "weights.safetensors", "latents.safetensors"),
    *("scaler.json", "metrics.json", "environment.json"),
)
_MOST_BYTES = {  # of each file; larger ones are refused unread
    **dict.fromkeys((*MODEL_FILES, MANIFEST), SMALL_FILE),
    "scaler.json": 2**24,
    **dict.fromkeys(("weights.safetensors", "latents.safetensors"), 2**29),
}
_HEADER_BYTES = 2**20  # of a safetensors file
_LATENTS = "train_statistics"
_UNUSABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError),
    *(MemoryError, SafetensorError),
)
_PACKAGES = ("torch", "numpy", "safetensors")


def save_model(
    folder: Path,
    model: FittedModel,
    *,
    metrics: Mapping[str, float],
    provenance: Mapping[str, str] | None = None,
    heading: str = "",
) -> None:
    """Writes a model folder, which appears complete or not at all.

    Args:
        folder: A new path or an empty folder.
        model: A model with scaler and feature names, see ``FittedModel.with_metadata``.
        metrics: Scores to record in metrics.json.
        provenance: Origin of the model (``mlflow_run_id``, for example), recorded in the manifest.
        heading: A line about the configuration, the first comment of config.yaml.

    Raises:
        ModelFolderError: The model has no scaler, or the folder is not empty or cannot be written.
    """
    if model.scaler is None:
        raise ModelFolderError(
            "a model folder needs the scaler of the model's data, got None; call with_metadata() first"
        )
    family = build_family(Architecture.of(model.config.model, len(model.feature_names)))
    packages = {name: version(name) for name in _PACKAGES}
    contents = {
        "config.yaml": (f"# {one_line(heading)}\n" * bool(heading) + model.config.to_yaml()).encode(),
        "weights.safetensors": save_tensors(_parameters(family, model.weights.cpu())),
        "latents.safetensors": save_tensors({_LATENTS: model.latents.cpu().contiguous()}),
        "scaler.json": _json({"feature_names": list(model.feature_names), **model.scaler.to_dict()}),
        "metrics.json": _json(dict(metrics)),
        "environment.json": _json({"vadtune": __version__, "python": platform.python_version(), **packages}),
    }
    with new_folder(folder) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        write_manifest(temporary, provenance or {})


def write_manifest(folder: Path, provenance: Mapping[str, str]) -> None:
    """Writes manifest.json into a folder that holds all other model files."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "provenance": dict(provenance),
        "sha256": {name: sha256_of(folder / name, _MOST_BYTES[name]) for name in MODEL_FILES},
    }
    (folder / MANIFEST).write_bytes(_json(manifest))


def load_model(folder: Path) -> FittedModel:
    """Reads a model folder after checking every file against the manifest.

    Raises:
        ModelFolderError: It is not a model folder, or a file is missing, was altered or has the wrong shape.
        ConfigError: config.yaml is not valid.
    """
    read_manifest(folder)
    config = load_trial(folder / "config.yaml")
    try:
        scaler_json = json.loads(_content(folder, "scaler.json"))
        names = scaler_json.pop("feature_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("feature_names must be a list of texts")
        family = build_family(Architecture.of(config.model, len(names)))
        if (size := (folder / "weights.safetensors").stat().st_size) > 4 * family.n_parameters + _HEADER_BYTES:
            raise ValueError(f"{family.n_parameters} weights expected, got a file of {size} bytes")
        tensors = load_tensors(_content(folder, "weights.safetensors"))
        weights = torch.cat([tensors[name].flatten() for name in _parameters(family, torch.empty(family.n_parameters))])
        latents = load_tensors(_content(folder, "latents.safetensors"))[_LATENTS]
        if weights.numel() != family.n_parameters:
            raise ValueError(f"{family.n_parameters} weights expected, got {weights.numel()}")
        width = family.architecture.posterior_params
        if latents.dim() != 2 or len(latents) == 0 or latents.shape[1] != width:
            raise ValueError(f"latents of {width} numbers a row expected, got shape {tuple(latents.shape)}")
        if {weights.dtype, latents.dtype} != {torch.float32}:
            raise ValueError(f"weights and latents of 32 bits expected, got {weights.dtype} and {latents.dtype}")
        scaler = Scaler.from_dict(scaler_json)
        if not scaler.offset.shape == scaler.scale.shape == (len(names),):
            raise ValueError(f"a scaler of {len(names)} columns expected, got shape {scaler.offset.shape}")
        if not (np.isfinite(scaler.offset).all() and np.isfinite(scaler.scale).all() and (scaler.scale > 0).all()):
            raise ValueError("a scaler of finite numbers and positive scales expected, got others")
        for what, tensor in (("weights", weights), ("latents", latents)):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"finite {what} expected, got others")
        return FittedModel(config, weights, latents, scaler, tuple(names))
    except _UNUSABLE as error:
        raise ModelFolderError(f"{folder}: its files do not fit together ({error}); export the model again") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a model folder after checking every file against it.

    Raises:
        ModelFolderError: It is not a model folder, or a file is missing, damaged or altered.
    """
    if not (folder / MANIFEST).exists():
        raise ModelFolderError(f"{folder}: not a model folder, it has no {MANIFEST}; name a folder that export wrote")
    try:
        manifest: dict[str, Any] = json.loads(_content(folder, MANIFEST))
        format_version, hashes = manifest["format_version"], dict(manifest["sha256"])
        manifest["provenance"] = dict(manifest["provenance"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFolderError(f"{folder / MANIFEST}: cannot be read ({error}); export the model again") from error
    if format_version != FORMAT_VERSION:
        raise ModelFolderError(
            f"{folder}: format version {FORMAT_VERSION} expected, got {format_version}; "
            "use the vadtune that wrote it, or export the model again"
        )
    for name in MODEL_FILES:
        problem = ""
        try:
            check_inside(folder, folder / name)
            if sha256_of(folder / name, _MOST_BYTES[name]) != hashes.get(name):
                problem = "was altered after it was written (its SHA-256 differs from the manifest's)"
        except FileNotFoundError:
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            raise ModelFolderError(f"{folder}: {name} {problem}; export the model again")
    return manifest


def find_model_folders(path: Path) -> list[Path]:
    """Returns ``path`` if it is a model folder, else the model folders directly inside it, sorted by name.

    Raises:
        ModelFolderError: No model folder was found.
    """
    if (path / MANIFEST).exists():
        return [path]
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    # A folder with any model file counts, so that one without its manifest is reported and not skipped.
    folders = [folder for folder in folders if any((folder / name).exists() for name in (MANIFEST, *MODEL_FILES))]
    for folder in folders:
        try:
            check_inside(path, folder)
        except OSError as error:
            raise ModelFolderError(f"{folder}: {error.strerror}; copy the models instead") from error
    if not folders:
        state = "holds no model folder" if path.is_dir() else "does not exist"
        raise ModelFolderError(f"{path}: {state}; write one with `vadtune export EXPERIMENT --out {path}`")
    return folders


def _parameters(family: Family, weights: Tensor) -> dict[str, Tensor]:
    """Returns the parts of flat weights (M,) by name, such as ``decoder.0.weight``, in the order of the weights."""
    return {
        f"{network}.{index}.{kind}": tensor[0].contiguous()
        for network, layers in family.layers(weights[None]).items()
        for index, layer in enumerate(layers)
        for kind, tensor in layer.tensors().items()
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _content(folder: Path, name: str) -> bytes:
    check_inside(folder, folder / name)
    return read_bounded(folder / name, _MOST_BYTES[name])
