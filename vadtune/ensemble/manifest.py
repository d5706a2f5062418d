"""ensemble.json: which model folders beside it are one model together, with which weights, and why.

It holds the SHA-256 of every member's manifest, which holds those of the member's files, that of the regression
(regression.safetensors), where one goes with the members, and one of its own content: a weight, a member or a file that
was altered is told.
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
from vadtune.ensemble.kernel_regression import KernelRegression

ENSEMBLE_FILE = "ensemble.json"
REGRESSION_FILE = "regression.safetensors"
FORMAT_VERSION = 1
_MOST_BYTES = 2**20
_OWN_HASH = "sha256"


@dataclass(frozen=True)
class EnsembleMember:
    """A model of an ensemble.

    Attributes:
        folder: Name of its folder, beside ensemble.json.
        trial: The trial it came from.
        weight: Its part of the mean; the weights of all members have sum 1.
        rmse: Its own error over the held-out cells.
        manifest_sha256: Of its manifest.
    """

    folder: str
    trial: str
    weight: float
    rmse: float
    manifest_sha256: str


@dataclass(frozen=True)
class EnsembleRegression:
    """The regression that goes with the members.

    Attributes:
        share: Of it, in the mean with theirs.
        gain: By which share it lowers the error over the held-out cells, ``share`` being chosen on those of other rows.
        rows: How many it learned from and keeps.
        sha256: Of its file.
    """

    share: float
    gain: float
    rows: int
    sha256: str


@dataclass(frozen=True)
class Ensemble:
    """What ensemble.json says. Errors are RMSE over the held-out cells, in the model's units.

    Attributes:
        selection: How members were chosen: ``greedy``, ``top:K`` or ``best``.
        refit: The rows they were trained on anew, or ``none``.
        held_out: What the errors are over, in words.
        cells: The number of these cells.
        missing_ratio: Share of the cells of the validation rows that are missing.
        rmse: Of the ensemble, over the cells its weights were chosen on.
        unseen_rmse: The same, had weights been chosen on other rows than those they are scored on.
        best_rmse: Of the best single model, chosen on the cells it is scored on.
        best_unseen_rmse: The same, chosen on other rows.
        members: The best single model first.
        regression: What goes with them; None if nothing does.
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
        """The error on unseen rows of members and regression together, estimated by the gain of the latter."""
        return self.unseen_rmse * (1 - (self.regression.gain if self.regression else 0.0))

    @property
    def gain(self) -> float:
        """By which share the error on unseen rows is below that of the best single model."""
        return 1 - self.whole_rmse / self.best_unseen_rmse if self.best_unseen_rmse else 0.0

    def line(self) -> str:
        """Returns one line on what the ensemble is worth."""
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
    text = json.dumps({**content, _OWN_HASH: _hash(content)}, indent=1, sort_keys=True)
    (folder / ENSEMBLE_FILE).write_text(text + "\n")


def manifest_hash(model_folder: Path) -> str:
    """Returns the SHA-256 of a model folder's manifest."""
    return hashlib.sha256((model_folder / MANIFEST).read_bytes()).hexdigest()


def read_ensemble(folder: Path) -> Ensemble | None:
    """Returns what ensemble.json of a folder says, after checking it against the folder; None without one.

    Raises:
        ModelFolderError: It cannot be read, was altered, or the folder's models are not those it names.
    """
    path = folder / ENSEMBLE_FILE
    if not path.exists():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        content: dict[str, Any] = json.loads(path.read_bytes())
        own = content.pop(_OWN_HASH)
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {FORMAT_VERSION} expected, got {content['format_version']}")
        if own != _hash(content):
            raise ValueError("it was altered after it was written")
        del content["format_version"]
        members = tuple(EnsembleMember(**member) for member in content.pop("members"))
        regression = content.pop("regression", None)  # of an earlier export
        regression = None if regression is None else EnsembleRegression(**regression)
        ensemble = Ensemble(**content, members=members, regression=regression)
        _check_types(ensemble)
        for member in members:
            _check_types(member)
        if ensemble.regression is not None:
            _check_types(ensemble.regression)
        weights = [member.weight for member in members]
        if min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-9):
            raise ValueError(f"weights must be at least 0 with sum 1, got {weights}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFolderError(f"{path}: cannot be used ({error}); export the models again") from error
    # Names are compared with those of the folders that are there, and never followed.
    there = {place.name: place for place in find_model_folders(folder)}
    named = [member.folder for member in members]
    if sorted(named) != sorted(there):
        raise ModelFolderError(
            f"{path}: names {', '.join(sorted(named))}, but the models beside it are {', '.join(sorted(there))}; "
            "export the models again"
        )
    for member in members:
        place = there[member.folder]
        if not (place / MANIFEST).is_file() or manifest_hash(place) != member.manifest_sha256:
            raise ModelFolderError(
                f"{place}: {MANIFEST} is missing or was altered after it was written (its SHA-256 differs from that in "
                f"{ENSEMBLE_FILE}); export the models again"
            )
    return ensemble


def read_regression(folder: Path, ensemble: Ensemble | None) -> KernelRegression | None:
    """Returns the regression that goes with an ensemble; None if none does.

    Raises:
        ModelFolderError: It is missing or was altered.
    """
    if ensemble is None or ensemble.regression is None:
        return None
    path = folder / REGRESSION_FILE
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != ensemble.regression.sha256:
            raise ValueError(f"it was altered after it was written, its SHA-256 differs from that in {ENSEMBLE_FILE}")
        return KernelRegression.from_bytes(content)
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: cannot be used ({error}); export the models again") from error


def write_regression(folder: Path, regression: KernelRegression, gain: float) -> EnsembleRegression:
    """Writes a regression beside its members; returns what ensemble.json says of it.

    Args:
        folder: Of the ensemble.
        regression: To write.
        gain: See ``EnsembleRegression``.
    """
    content = regression.to_bytes()
    (folder / REGRESSION_FILE).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return EnsembleRegression(regression.share, gain, len(regression.support), sha256)


def _check_types(described: Ensemble | EnsembleMember | EnsembleRegression) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
    for field in fields(described):
        if field.name == "regression":
            continue  # a part of its own
        value, kind = getattr(described, field.name), kinds.get(str(field.type), tuple)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{field.name} must be a {field.type}, got {value!r}")
        if isinstance(value, (int, float)) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be finite, got {value!r}")


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
