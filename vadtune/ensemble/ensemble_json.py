"""ensemble.json and regression.safetensors: members, weights and errors of an exported ensemble, protected by hashes.

ensemble.json holds the SHA-256 of every member's manifest (which holds those of the member's files), of
regression.safetensors, and of its own content, so that any change to an exported folder is detected.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vadtune.artifacts.model_folder import MANIFEST, find_model_folders
from vadtune.core.errors import ModelFolderError
from vadtune.core.reading import SMALL_FILE, check_inside, read_bounded, sha256_of
from vadtune.ensemble.kernel_regression import KernelRegression

ENSEMBLE_FILE = "ensemble.json"
REGRESSION_FILE = "regression.safetensors"
FORMAT_VERSION = 1
_MOST_REGRESSION_BYTES = 2**28
_CONTENT_HASH = "sha256"


@dataclass(frozen=True)
class EnsembleMember:
    """One model of an ensemble.

    Attributes:
        folder: Name of its model folder, next to ensemble.json.
        trial: The trial it comes from.
        weight: Its weight in the mean; all weights have sum 1.
        rmse: Its error alone over the held-out cells, in the scaler's units.
        manifest_sha256: SHA-256 of its manifest.
    """

    folder: str
    trial: str
    weight: float
    rmse: float
    manifest_sha256: str


@dataclass(frozen=True)
class EnsembleRegression:
    """The regression that is mixed with the mean of the members.

    Attributes:
        share: Its weight in the mean with the members, 0 to 1.
        gain: Relative decrease of the RMSE over the held-out cells, cross-validated over rows.
        rows: Number of its support rows.
        sha256: SHA-256 of its file.
    """

    share: float
    gain: float
    rows: int
    sha256: str


@dataclass(frozen=True)
class Ensemble:
    """The content of ensemble.json. Errors are RMSE over the held-out cells, in the scaler's units.

    Attributes:
        selection: How members were chosen: ``greedy``, ``top:K`` or ``best``.
        refit: The rows the members were trained on after the search, or ``none``.
        held_out: The held-out cells in words.
        cells: Number of held-out cells.
        missing_ratio: Share of missing cells in the validation rows.
        rmse: Error of the ensemble over the cells its weights were chosen on.
        unseen_rmse: Cross-validated error of the ensemble: weights are chosen on other rows than those scored.
        best_rmse: Error of the best single model over the cells it was chosen on.
        best_unseen_rmse: Cross-validated error of the best single model.
        members: The members, best single model first.
        regression: The regression that is mixed with their mean, or None.
    """

    selection: str
    refit: str
    held_out: str
    cells: int
    missing_ratio: float
    rmse: float
    unseen_rmse: float
    best_rmse: float
    best_unseen_rmse: float
    members: tuple[EnsembleMember, ...]
    regression: EnsembleRegression | None = None

    @property
    def whole_rmse(self) -> float:
        """Cross-validated error of members and regression together, estimated by the regression's gain."""
        return self.unseen_rmse * (1 - (self.regression.gain if self.regression else 0.0))

    @property
    def gain(self) -> float:
        """Relative decrease of the cross-validated error compared with the best single model."""
        return 1 - self.whole_rmse / self.best_unseen_rmse if self.best_unseen_rmse else 0.0

    def line(self) -> str:
        """Returns a summary of the ensemble and its error on one line."""
        n = len(self.members)
        regression = f" and a regression (share {self.regression.share:.2f})" if self.regression else ""
        return (
            f"{self.selection}, {n} model{'s' * (n != 1)}{regression}, refit on {self.refit}; RMSE over {self.cells} "
            f"{self.held_out}, chosen on other rows: {self.whole_rmse:.4f}, best single model "
            f"{self.best_unseen_rmse:.4f} ({-100 * self.gain:+.1f} %)"
        )


def write_ensemble(folder: Path, ensemble: Ensemble) -> None:
    """Writes ensemble.json into a folder that holds the members."""
    content = {"format_version": FORMAT_VERSION, **asdict(ensemble)}
    text = json.dumps({**content, _CONTENT_HASH: _hash(content)}, indent=1, sort_keys=True)
    (folder / ENSEMBLE_FILE).write_text(text + "\n")


def read_ensemble(folder: Path) -> Ensemble | None:
    """Returns the content of a folder's ensemble.json after checking the folder against it; None if it has none.

    Raises:
        ModelFolderError: The file is damaged or altered, or the folder's models are not those it names.
    """
    path = folder / ENSEMBLE_FILE
    if not path.exists():
        return None
    try:
        check_inside(folder, path)
        content: dict[str, Any] = json.loads(read_bounded(path))
        content_hash = content.pop(_CONTENT_HASH)
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {FORMAT_VERSION} expected, got {content['format_version']}")
        if content_hash != _hash(content):
            raise ValueError("it was altered after it was written")
        del content["format_version"]
        members = tuple(EnsembleMember(**member) for member in content.pop("members"))
        regression = content.pop("regression", None)  # exports before regressions have no such key
        regression = None if regression is None else EnsembleRegression(**regression)
        ensemble = Ensemble(**content, members=members, regression=regression)
        _check_types(ensemble, *members, *([regression] if regression else []))
        weights = [member.weight for member in members]
        if min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-9):
            raise ValueError(f"weights must be at least 0 with sum 1, got {weights}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFolderError(f"{path}: cannot be used ({error}); export the models again") from error
    # Names in the file are compared with those of existing folders and never followed as paths.
    folders = {place.name: place for place in find_model_folders(folder)}
    named = [member.folder for member in members]
    if sorted(named) != sorted(folders):
        raise ModelFolderError(
            f"{path}: names {', '.join(sorted(named))}, but the models in its folder are {', '.join(sorted(folders))}; "
            "export the models again"
        )
    for member in members:
        place = folders[member.folder]
        if not _has_manifest(place, member.manifest_sha256):
            raise ModelFolderError(
                f"{place}: {MANIFEST} is missing or was altered after it was written (its SHA-256 differs from that in "
                f"{ENSEMBLE_FILE}); export the models again"
            )
    return ensemble


def _has_manifest(model_folder: Path, sha256: str) -> bool:
    try:
        return manifest_hash(model_folder) == sha256
    except OSError:
        return False


def manifest_hash(model_folder: Path) -> str:
    """Returns the SHA-256 of a model folder's manifest."""
    return sha256_of(model_folder / MANIFEST, SMALL_FILE)


def write_regression(folder: Path, regression: KernelRegression, gain: float) -> EnsembleRegression:
    """Writes regression.safetensors and returns its entry for ensemble.json.

    Args:
        folder: The folder of the ensemble.
        regression: The regression to write.
        gain: See ``EnsembleRegression``.
    """
    content = regression.to_bytes()
    (folder / REGRESSION_FILE).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return EnsembleRegression(regression.share, gain, len(regression.support), sha256)


def read_regression(folder: Path, ensemble: Ensemble | None) -> KernelRegression | None:
    """Returns the regression of an ensemble; None if it has none.

    Raises:
        ModelFolderError: The file is missing, damaged or altered.
    """
    if ensemble is None or ensemble.regression is None:
        return None
    path = folder / REGRESSION_FILE
    try:
        check_inside(folder, path)
        content = read_bounded(path, _MOST_REGRESSION_BYTES)
        if hashlib.sha256(content).hexdigest() != ensemble.regression.sha256:
            raise ValueError(f"it was altered after it was written, its SHA-256 differs from that in {ENSEMBLE_FILE}")
        return KernelRegression.from_bytes(content)
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: cannot be used ({error}); export the models again") from error


def _check_types(*parts: Ensemble | EnsembleMember | EnsembleRegression) -> None:
    """Raises ValueError if a field has another type than its annotation, or is not finite."""
    kinds: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
    values = [(field, getattr(part, field.name)) for part in parts for field in fields(part) if field.type in kinds]
    for field, value in values:
        if not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):
            raise ValueError(f"{field.name} must be a {field.type}, got {value!r}")
        if isinstance(value, (int, float)) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be finite, got {value!r}")


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
