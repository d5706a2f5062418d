"""Export: an ensemble of a search's trials, written as one folder after training the members again on more rows."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vadtune.artifacts.model_folder import MODEL_FILES, load_model, read_manifest, save_model, write_manifest
from vadtune.config import REFITS
from vadtune.core.errors import ConfigError, ModelFolderError, unknown_name
from vadtune.core.files import check_writable, new_folder
from vadtune.core.threads import one_thread
from vadtune.data import IncompleteDataset, MaskedRows, mask_sha256
from vadtune.ensemble.candidates import find_candidates
from vadtune.ensemble.ensemble_json import (
    ENSEMBLE_FILE,
    REGRESSION_FILE,
    Ensemble,
    EnsembleMember,
    EnsembleRegression,
    manifest_hash,
    write_ensemble,
    write_regression,
)
from vadtune.ensemble.member_choice import LARGE_TABLE, Member, choose_members, with_seeds
from vadtune.ensemble.model_average import REFIT, SEEN_TEST_MASK
from vadtune.ensemble.regression_choice import RegressionChoice, train_support
from vadtune.ensemble.selection import MOST_CANDIDATES, parse_ensemble
from vadtune.tracking.delivery import log_to_run
from vadtune.tracking.queries import ENSEMBLE_TAG, SearchRun, Trial
from vadtune.tracking.redact import short_reason, without_secrets
from vadtune.tracking.store import connect_existing
from vadtune.training.inference import FittedModel
from vadtune.training.refit import Trainer

logger = logging.getLogger(__name__)

PARENT_RUN, BUDGET = "mlflow_parent_run_id", "budget"
_OTHER_FILES = (ENSEMBLE_FILE, REGRESSION_FILE, "masks.npz", "retest")  # next to the models; the last two by a retest

_Trained = list[tuple[Member, FittedModel | None]]
"""Members with their refitted models; None for a member that keeps the model of the search."""


class Exported(NamedTuple):
    """An exported ensemble.

    Attributes:
        ensemble: The content of its ensemble.json.
        trials: The trial of each member.
    """

    ensemble: Ensemble
    trials: list[Trial]


def check_refit(refit: str) -> None:
    """Raises ConfigError unless ``refit`` is one of ``REFITS``."""
    if refit not in REFITS:
        raise ConfigError(f"--refit: {unknown_name('refit', refit, REFITS)}")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Checks that an export may write the folder ``out``.

    Raises:
        VadtuneError: It cannot be written.
        ModelFolderError: It holds an earlier export and ``overwrite`` is false, or files that export did not write.
    """
    if out.exists() and not out.is_dir():
        raise ModelFolderError(f"{out}: must be a folder, and is a file; name another folder by --out")
    check_writable(out.absolute().parent)
    entries = sorted(out.iterdir()) if out.exists() else []
    others = [entry.name for entry in entries if entry.name not in _OTHER_FILES and not _was_exported(entry)]
    if others:
        raise ModelFolderError(
            f"{out}: must be new, empty or an earlier export, and holds {', '.join(others[:3])}; "
            "name another folder by --out"
        )
    if entries and not overwrite:
        raise ModelFolderError(f"{out}: holds an earlier export; replace it with --overwrite, or name another by --out")


@one_thread()
def export_best(
    search: SearchRun,
    trials: Sequence[Trial],
    *,
    metric: str,
    out: Path,
    ensemble: str = "greedy",
    refit: str = "train+validation",
    regress: bool = True,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes an ensemble of a search's trials to a folder, which appears complete or not at all.

    The folder holds a model folder per member (``01-<trial>``, ``02-<trial>``, …), ensemble.json, and
    regression.safetensors where a regression lowers the error.

    Args:
        search: The search of the trials; the ensemble is logged to its MLflow run.
        trials: The trials of the search.
        metric: The metric that ranks them; lower is better.
        out: A new or empty folder.
        ensemble: ``greedy``, ``top:K`` or ``best``.
        refit: The rows the members are trained on again, one of ``REFITS``; with ``none`` they are copied.
        regress: Whether a greedy ensemble may be mixed with a kernel regression.
        device: Where members are trained.
        overwrite: Whether an earlier export in ``out`` is replaced, including its retest results.
        progress: Called with a line of text before a long step.

    Raises:
        VadtuneError: ``out`` cannot be written, or a training process died.
        ConfigError: The ensemble or refit is unknown.
        DataError: The data of the search cannot be loaded here.
        ModelFolderError: ``out`` may not be replaced, no trial has a usable checkpoint, or one is damaged.
    """
    count = parse_ensemble(ensemble)
    check_refit(refit)
    check_out(out, overwrite=overwrite)
    out = out.absolute()
    with tempfile.TemporaryDirectory(prefix="vadtune-") as fetched:
        candidates, dataset = find_candidates(search.name, trials, metric, count or MOST_CANDIDATES, Path(fetched))
        if count is not None and len(candidates) < count:
            logger.warning("%d models asked for, but only %d trials have a checkpoint", count, len(candidates))
        rows = dataset.rows_of_refit(refit)
        with Trainer(rows, device) as trainer:
            choice = choose_members(
                candidates, dataset, ensemble, trainer=trainer, refit=refit, regress=regress, progress=progress
            )
            trained: _Trained = [(member, None) for member in choice.members]
            if refit != "none":
                members = choice.members
                if ensemble == "greedy":
                    large = rows.x.size > LARGE_TABLE
                    members = with_seeds(members, sum(trial.epoch for trial in trials) if large else math.inf)
                seconds = sum(member.candidate.trial.metrics.get("train_seconds", 0.0) for member in members)
                seconds /= min(trainer.workers, len(members))
                progress(f"training {len(members)} models on {len(rows.x)} rows: about {max(1, round(seconds))}s")
                models = trainer.train([member.candidate.fit(dataset, len(rows.x)) for member in members])
                trained = _without_diverged(members, models)
        with new_folder(out, overwrite=overwrite) as folder:
            written = Ensemble(
                selection=ensemble,
                refit=refit,
                held_out=choice.held_out,
                cells=choice.cells,
                missing_ratio=choice.missing_ratio,
                rmse=choice.selection.rmse,
                unseen_rmse=choice.selection.unseen_rmse,
                best_rmse=choice.selection.best_rmse,
                best_unseen_rmse=choice.selection.best_unseen_rmse,
                members=tuple(_write_members(folder, trained, search, dataset, refit, len(rows.x))),
                regression=_write_regression(folder, choice.regression, trained, rows),
            )
            write_ensemble(folder, written)
    _log(search, out, written)
    return Exported(written, [member.candidate.trial for member, _ in trained])


def _without_diverged(members: Sequence[Member], models: Sequence[FittedModel | None]) -> _Trained:
    """Returns the members whose refit did not diverge, their weights scaled to sum 1.

    Raises:
        ModelFolderError: All diverged.
    """
    kept = [(member, model) for member, model in zip(members, models, strict=True) if model is not None]
    for member, model in zip(members, models, strict=True):
        if model is None:
            logger.warning("%s is left out, it diverged when it was trained again", member.candidate.trial.name)
    if not kept:
        raise ModelFolderError("all members diverged when they were trained again; export with --refit none")
    total = sum(member.weight for member, _ in kept)
    return [(member._replace(weight=member.weight / total), model) for member, model in kept]


def _write_members(
    out: Path, trained: _Trained, search: SearchRun, dataset: IncompleteDataset, refit: str, rows: int
) -> list[EnsembleMember]:
    """Writes a model folder for each member and returns their entries for ensemble.json."""
    written = []
    for rank, (member, model) in enumerate(trained, start=1):
        trial = member.candidate.trial
        folder = out / f"{rank:02}-{trial.name}"  # two digits, so that sorting by name sorts by rank
        provenance = {
            "experiment": search.experiment,
            "search": search.name,
            "trial": trial.name,
            "trial_end": trial.end,
            "mlflow_run_id": trial.run_id,
            PARENT_RUN: search.run_id,
            "tracking_uri": without_secrets(search.tracking_uri),
            REFIT: refit,
        }
        if refit == "all-observed":
            provenance[SEEN_TEST_MASK] = mask_sha256(dataset.default_test_mask())
        if model is None:
            folder.mkdir()
            for name in MODEL_FILES:
                shutil.copyfile(member.candidate.folder / name, folder / name)
            write_manifest(folder, provenance)
        else:
            scores = {f"search_{name}": value for name, value in trial.metrics.items()}
            with_metadata = model.with_metadata(dataset.scaler, dataset.feature_names)
            budget = _budget(member, model, dataset, rows)
            provenance[BUDGET] = budget
            save_model(folder, with_metadata, metrics=scores, provenance=provenance, heading=budget)
        written.append(EnsembleMember(folder.name, trial.name, member.weight, member.rmse, manifest_hash(folder)))
    return written


def _budget(member: Member, model: FittedModel, dataset: IncompleteDataset, rows: int) -> str:
    """Returns for how many epochs a member was trained again, and why for so many, in one line."""
    candidate = member.candidate
    now, before = candidate.fit(dataset, rows), candidate.config.train.epochs
    total = model.config.train.epochs
    refitted = f"{total} epochs" if now.epochs == total else f"{now.epochs} of {total} epochs"
    searched = f"{before} epochs" if candidate.trial.epoch == before else f"{candidate.trial.epoch} of {before} epochs"
    return (
        f"Trained again for {refitted} on {rows} rows; searched: {searched} on {len(dataset.train.x)} rows. "
        "More rows make more steps an epoch, and the number of steps is the same."
    )


def _write_regression(
    out: Path, choice: RegressionChoice | None, trained: _Trained, rows: MaskedRows
) -> EnsembleRegression | None:
    """Fits the chosen regression to the rows of the refit, writes it, and returns its entry for ensemble.json."""
    if choice is None:
        return None
    models = (model or load_model(member.candidate.folder) for member, model in trained)
    return write_regression(
        out, choice.fit(*train_support(rows, models, [member.weight for member, _ in trained])), choice.gain
    )


def _was_exported(folder: Path) -> bool:
    try:
        return PARENT_RUN in read_manifest(folder)["provenance"]
    except ModelFolderError:  # no model folder, or an altered one, which must not be replaced
        return False


def _log(search: SearchRun, out: Path, ensemble: Ensemble) -> None:
    """Logs the ensemble to the search's MLflow run; a failure to do so is only a warning."""
    values = {
        "ensemble_held_out_rmse": ensemble.whole_rmse,
        "ensemble_best_single_held_out_rmse": ensemble.best_unseen_rmse,
        "ensemble_members": float(len(ensemble.members)),
    }
    weights: dict[str, float] = {}
    for member in ensemble.members:  # a trial may have several members, with different seeds
        weights[member.trial] = weights.get(member.trial, 0.0) + member.weight
    tags = {ENSEMBLE_TAG: ensemble.line(), f"{ENSEMBLE_TAG}.weights": json.dumps(weights)}
    try:
        client = connect_existing(search.tracking_uri)
        log_to_run(client, search.run_id, metrics=values, tags=tags, artifacts=[out / ENSEMBLE_FILE])
    except Exception as error:  # the type depends on the store; the models are on disk already
        logger.warning("the ensemble was not logged to MLflow: %s", short_reason(error, search.tracking_uri))
