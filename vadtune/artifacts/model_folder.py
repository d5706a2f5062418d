"""Model folders: a trained model on disk, as files that execute nothing when loaded.

    config.yaml           the trial configuration, which `vadtune train` accepts
    weights.safetensors   network parameters by name, members of one model: (in, out) or (1, out)
    latents.safetensors   posterior_params of the train rows (m, s)
    scaler.json           offset and scale per column, and the columns' names
    metrics.json          the scores reported when it was saved
    environment.json      versions of Python and of the packages that matter
    manifest.json         format version, provenance, and the SHA-256 of every other file

A checkpoint of a trial is a model folder with training_state.safetensors beside it, and the SHA-256 of that, and what
the model predicts for the held-out validation cells (held_out.npz), of which ensembles are made.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from vadtune import __version__
from vadtune.artifacts.run_folder import STATE_FILE, STATE_HASH
from vadtune.config import load_trial
from vadtune.core.errors import ModelFolderError
from vadtune.core.files import NOT_ARRAYS
from vadtune.data import HeldOut, Scaler, mask_sha256
from vadtune.models import Architecture, Family, build_family
from vadtune.training.inference import FittedModel
from vadtune.training.member import State
from vadtune.training.population import Population

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILES = (
    "config.yaml",
    "weights.safetensors",
    "latents.safetensors",
    "scaler.json",
    "metrics.json",
    "environment.json",
)
HELD_OUT_FILE = "held_out.npz"
_HEADERS = 4096  # bytes of a held_out.npz beside the predictions, at most
_PACKAGES = ("torch", "numpy", "safetensors")


def save_model(
    folder: Path, model: FittedModel, *, metrics: Mapping[str, float], provenance: Mapping[str, str] | None = None
) -> None:
    """Writes a model folder; it appears whole or not at all.

    Args:
        folder: Must not exist, or be an empty folder.
        model: With scaler and feature names.
        metrics: The scores to record with it.
        provenance: Where it came from (``mlflow_run_id``, say); recorded in the manifest.

    Raises:
        ModelFolderError: The folder is not empty or cannot be written.
    """
    if model.scaler is None:
        raise ModelFolderError(
            "a model folder needs the scaler of the model's data, got None; call with_metadata() first"
        )
    family = _family(model)
    named = {
        f"{network}.{index}.{kind}": tensor[0].contiguous()
        for network, layers in family.layers(model.weights[None].cpu()).items()
        for index, layer in enumerate(layers)
        for kind, tensor in layer.tensors().items()
    }
    scaler = {"feature_names": list(model.feature_names), **model.scaler.to_dict()}
    contents = {
        "config.yaml": model.config.to_yaml().encode(),
        "weights.safetensors": save_tensors(named),
        "latents.safetensors": save_tensors({"train_statistics": model.latents.cpu().contiguous()}),
        "scaler.json": _json(scaler),
        "metrics.json": _json(dict(metrics)),
        "environment.json": _json(environment()),
    }
    with replaced_folder(folder) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        write_manifest(temporary, provenance or {})


def write_manifest(folder: Path, provenance: Mapping[str, str]) -> None:
    """Writes the manifest of a folder that holds every other model file."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "provenance": dict(provenance),
        "sha256": {name: _sha256(folder / name) for name in MODEL_FILES},
    }
    (folder / MANIFEST).write_bytes(_json(manifest))


def load_model(folder: Path) -> FittedModel:
    """Reads a model folder and checks every file against the manifest.

    Raises:
        ModelFolderError: It is not a model folder, a file is missing, or one was altered.
    """
    read_manifest(folder)
    config = load_trial(folder / "config.yaml")
    try:
        description = json.loads((folder / "scaler.json").read_bytes())
        names = description.pop("feature_names")
        family = build_family(Architecture.of(config.model, len(names)))
        named = load_tensors((folder / "weights.safetensors").read_bytes())
        latents = load_tensors((folder / "latents.safetensors").read_bytes())["train_statistics"]
        weights = torch.cat(
            [
                named[f"{network}.{index}.{kind}"].flatten()
                for network, layers in family.layers(torch.empty(1, family.n_parameters)).items()
                for index, layer in enumerate(layers)
                for kind in layer.tensors()
            ]
        )
        if weights.numel() != family.n_parameters:
            raise ValueError(f"{family.n_parameters} weights expected, got {weights.numel()}")
        width = family.architecture.posterior_params
        if latents.dim() != 2 or len(latents) == 0 or latents.shape[1] != width:
            raise ValueError(f"latents of {width} numbers a row expected, got shape {tuple(latents.shape)}")
        if {weights.dtype, latents.dtype} != {torch.float32}:
            raise ValueError(f"weights and latents of 32 bits expected, got {weights.dtype} and {latents.dtype}")
        scaler = Scaler.from_dict(description)
        if not scaler.offset.shape == scaler.scale.shape == (len(names),):
            raise ValueError(f"a scaler of {len(names)} columns expected, got shape {scaler.offset.shape}")
        return FittedModel(config, weights, latents, scaler, tuple(names))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(f"{folder}: its files do not fit together ({error}); export the model again") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a model folder, after checking every file against it.

    Raises:
        ModelFolderError: As for ``load_model``.
    """
    if not (folder / MANIFEST).is_file():
        raise ModelFolderError(f"{folder}: not a model folder, it has no {MANIFEST}; name a folder that export wrote")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        format_version, hashes = manifest["format_version"], dict(manifest["sha256"])
        manifest["provenance"] = dict(manifest["provenance"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFolderError(f"{folder / MANIFEST}: cannot be read ({error}); export the model again") from error
    if format_version != FORMAT_VERSION:
        raise ModelFolderError(
            f"{folder}: format version {FORMAT_VERSION} expected, got {format_version}; "
            "use the vadtune that wrote it, or export the model again"
        )
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise ModelFolderError(f"{folder}: {name} is missing; export the model again")
        if _sha256(folder / name) != hashes.get(name):
            raise ModelFolderError(
                f"{folder}: {name} was altered after it was written (its SHA-256 differs from the manifest's); "
                "export the model again"
            )
    return dict(manifest)


def read_metrics(folder: Path) -> dict[str, float]:
    """Returns the scores recorded in a model folder."""
    return dict(json.loads((folder / "metrics.json").read_bytes()))


def find_model_folders(path: Path) -> list[Path]:
    """Returns the model folders at ``path``: itself, or those directly inside it, sorted by name.

    Raises:
        ModelFolderError: There is none.
    """
    if (path / MANIFEST).is_file():
        return [path]
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    # A folder with any of a model's files counts, so that one that lost its manifest is reported and not passed over.
    folders = [folder for folder in folders if any((folder / name).exists() for name in (MANIFEST, *MODEL_FILES))]
    if not folders:
        state = "holds no model folder" if path.is_dir() else "does not exist"
        raise ModelFolderError(f"{path}: {state}; write one with `vadtune export EXPERIMENT --out {path}`")
    return folders


def save_state(folder: Path, state: State) -> None:
    """Writes all that resuming a member of a population needs into ``folder``."""
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    (folder / STATE_FILE).write_bytes(content)
    (folder / STATE_HASH).write_text(hashlib.sha256(content).hexdigest() + "\n")


def load_state(folder: Path, population: Population) -> State:
    """Makes a population of one go on from what ``save_state`` wrote; returns it.

    Raises:
        ModelFolderError: The file is missing, was damaged or altered.
    """
    try:
        content, sha256 = (folder / STATE_FILE).read_bytes(), (folder / STATE_HASH).read_text()
    except OSError as error:
        raise ModelFolderError(f"{folder}: training cannot be resumed from it, {STATE_FILE}: {error}") from error
    state = parse_state(content, sha256)
    population.load_states([state])
    return state


def parse_state(content: bytes, sha256: str) -> State:
    """Returns the state in the content of a state file.

    Raises:
        ModelFolderError: It was damaged or altered.
    """
    try:
        if hashlib.sha256(content).hexdigest() != sha256.strip():
            raise ValueError(f"its SHA-256 differs from {STATE_HASH}")
        return dict(load_tensors(content))
    except (ValueError, SafetensorError) as error:
        raise ModelFolderError(f"{STATE_FILE}: training cannot be resumed from it: {error}") from error


def save_held_out(folder: Path, predictions: np.ndarray, held_out: HeldOut) -> None:
    """Writes what a model predicts for the held-out cells, beside its model folder.

    Args:
        folder: A checkpoint.
        predictions: float32 (c,), in the order of ``HeldOut.values``; 4 bytes a cell before compression.
        held_out: Which cells they are of: only predictions of the same cells can be put together.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predictions=predictions, cells=np.array(mask_sha256(held_out.cells)))
    (folder / HELD_OUT_FILE).write_bytes(buffer.getvalue())


def load_held_out(folder: Path, held_out: HeldOut) -> np.ndarray:
    """Reads what a model predicts for the held-out cells, float32 (c,).

    Raises:
        ModelFolderError: The file is missing or damaged, or is about other cells than those of ``held_out``.
    """
    path, count = folder / HELD_OUT_FILE, int(held_out.cells.sum())
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * count + _HEADERS:
                raise ValueError("it unpacks to more than the predictions")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            of_cells, predictions = str(file["cells"]), np.asarray(file["predictions"])
        if of_cells != mask_sha256(held_out.cells):
            raise ValueError("it is about other held-out cells than those of this data")
        if predictions.shape != (count,) or predictions.dtype != np.float32:
            raise ValueError(f"it holds {predictions.dtype} of shape {predictions.shape}")
        if not np.isfinite(predictions).all():
            raise ValueError("it holds values that are not finite")
    except NOT_ARRAYS as error:
        raise ModelFolderError(f"{path}: cannot be used ({' '.join(str(error).split())}); search again") from error
    return predictions


def environment() -> dict[str, str]:
    """Returns the versions a result depends on."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"vadtune": __version__, "python": platform.python_version(), **packages}


def check_new_folder(folder: Path) -> None:
    """Makes sure, before any work is done, that a folder can be written; creates its parents.

    Raises:
        ModelFolderError: It exists and is not empty, or it cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ModelFolderError(f"{folder}: must be new or empty, and is not; name another folder")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.absolute().parent):
            pass
    except OSError as error:
        raise ModelFolderError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside ``folder`` that takes its place when the block ends well.

    Raises:
        ModelFolderError: ``folder`` is not empty, or cannot be written.
    """
    folder = folder.absolute()
    check_new_folder(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private
        yield temporary
        temporary.replace(folder)
    except OSError as error:
        raise ModelFolderError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _family(model: FittedModel) -> Family:
    return build_family(Architecture.of(model.config.model, len(model.feature_names)))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
