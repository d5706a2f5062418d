"""Export: an ensemble of a search's trials as one folder, its members trained anew on more rows."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vadtune.artifacts.model_folder import MODEL_FILES, load_model, read_manifest, save_model, write_manifest
from vadtune.config import REFITS
from vadtune.core.errors import ConfigError, ModelFolderError, unknown_name
from vadtune.core.files import check_writable
from vadtune.data import IncompleteDataset, MaskedRows, mask_sha256
from vadtune.ensemble.candidates import (
    MOST_CANDIDATES,
    Candidate,
    Chosen,
    choose_members,
    find_candidates,
    parse_ensemble,
    with_seeds,
)
from vadtune.ensemble.kernel_regression import RegressionChoice
from vadtune.ensemble.manifest import (
    ENSEMBLE_FILE,
    REGRESSION_FILE,
    Ensemble,
    EnsembleMember,
    EnsembleRegression,
    manifest_hash,
    write_ensemble,
    write_regression,
)
from vadtune.ensemble.model_average import REFIT, SEEN_TEST_MASK
from vadtune.ensemble.selection import weighted_sum
from vadtune.models.products import one_thread
from vadtune.tracking import SearchRun, Trial, connect_existing, log_to_run, without_secrets
from vadtune.tracking.queries import ENSEMBLE_TAG
from vadtune.training.inference import FittedModel
from vadtune.training.refit import Trainer

logger = logging.getLogger(__name__)

PARENT_RUN = "mlflow_parent_run_id"
_ALSO_OURS = (ENSEMBLE_FILE, REGRESSION_FILE, "masks.npz", "retest")  # beside the models; the last two are a retest's


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        folder: Where.
        ensemble: What its ensemble.json says.
        trials: Of the members, in their order.
    """

    folder: Path
    ensemble: Ensemble
    trials: list[Trial]


def check_refit(refit: str) -> None:
    """Makes sure that there is such a refit.

    Raises:
        ConfigError: There is not.
    """
    if refit not in REFITS:
        raise ConfigError(f"--refit: {unknown_name('refit', refit, REFITS)}")


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
    """Writes an ensemble of trials to ``out``: ``01-<trial>``, ``02-<trial>``, … and ensemble.json; all or nothing.

    Where a regression goes with them, regression.safetensors as well.

    Args:
        search: The search the trials belong to; its run is told of the ensemble.
        trials: Its trials.
        metric: What ranks them; lower is better.
        out: A new or empty folder.
        ensemble: ``greedy``, ``top:K`` or ``best``.
        refit: The rows the members are trained on anew, one of ``config.REFITS``.
        regress: Whether a greedy ensemble may be mixed with a kernel regression.
        device: Where they are trained.
        overwrite: Whether an earlier export in ``out`` is replaced, with its retest results.
        progress: Is told what is being done.

    Raises:
        VadtuneError: ``out`` cannot be written, or a process that trains died.
        ConfigError: There is no such ensemble or refit.
        DataError: The data of the search cannot be loaded here.
        ModelFolderError: ``out`` holds something, no trial has a checkpoint with predictions, or one is damaged.
    """
    count = parse_ensemble(ensemble)
    check_refit(refit)
    check_out(out, overwrite=overwrite)
    out = out.absolute()
    with tempfile.TemporaryDirectory(prefix="vadtune-") as fetched:
        candidates, dataset = find_candidates(
            search.name, trials, metric, MOST_CANDIDATES if count is None else count, Path(fetched)
        )
        if count is not None and len(candidates) < count:
            logger.warning("%d models asked for, but only %d trials have a checkpoint", count, len(candidates))
        rows = dataset.rows_of_refit(refit)
        # The regression is chosen beside the training, which waits for other processes.
        with Trainer(rows, device) as trainer, ThreadPoolExecutor(1) as beside:
            chosen = choose_members(
                candidates, dataset, ensemble, trainer=trainer, refit=refit, regress=regress, progress=progress
            )
            regression = beside.submit(chosen.regress)
            if ensemble == "greedy" and refit != "none":
                chosen = with_seeds(chosen)
            models: list[FittedModel | None] = [None] * len(chosen.members)
            if refit != "none":
                progress(f"training {len(models)} models on {len(rows.x)} rows")
                chosen, models = _sound(
                    chosen, trainer.train([member.fit(dataset, len(rows.x)) for member in chosen.members])
                )
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
                new, old = Path(scratch) / "new", Path(scratch) / "old"
                new.mkdir()
                members = _write_members(new, chosen, models, search, dataset, refit)
                described = _write_regression(new, regression.result(), chosen, models, rows)
                written = Ensemble(
                    selection=ensemble,
                    refit=refit,
                    held_out=chosen.held_out,
                    cells=chosen.cells,
                    missing_ratio=chosen.missing_ratio,
                    rmse=chosen.selection.rmse,
                    unseen_rmse=chosen.selection.unseen_rmse,
                    best_rmse=chosen.selection.best_rmse,
                    best_unseen_rmse=chosen.selection.best_unseen_rmse,
                    members=tuple(members),
                    regression=described,
                )
                write_ensemble(new, written)
                with suppress(FileNotFoundError):
                    out.rename(old)
                try:
                    new.rename(out)
                except OSError:
                    if old.exists():
                        old.rename(out)
                    raise
        except OSError as error:
            raise ModelFolderError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    _log(search, out, written)
    return Exported(out, written, [member.trial for member in chosen.members])


def _sound(chosen: Chosen, models: Sequence[FittedModel | None]) -> tuple[Chosen, list[FittedModel | None]]:
    """Leaves out members that diverged on the new rows; the others take their weight.

    Raises:
        ModelFolderError: All did.
    """
    kept = [i for i, model in enumerate(models) if model is not None]
    for member, model in zip(chosen.members, models, strict=True):
        if model is None:
            logger.warning("%s is left out, it diverged when it was trained anew", member.trial.name)
    if not kept:
        raise ModelFolderError("all members diverged when they were trained anew; export with --refit none")
    total = sum(chosen.weights[i] for i in kept)
    left = chosen._replace(
        members=[chosen.members[i] for i in kept],
        weights=[chosen.weights[i] / total for i in kept],
        errors=[chosen.errors[i] for i in kept],
    )
    return left, [models[i] for i in kept]


def _write_members(
    new: Path,
    chosen: Chosen,
    models: Sequence[FittedModel | None],
    search: SearchRun,
    dataset: IncompleteDataset,
    refit: str,
) -> list[EnsembleMember]:
    """Writes the model folders; a member without a model of its own is copied as it was searched."""
    written = []
    for rank, (member, model) in enumerate(zip(chosen.members, models, strict=True), start=1):
        folder = new / f"{rank:02}-{member.trial.name}"  # so that names sort by rank
        provenance = _provenance(search, member.trial) | {REFIT: refit}
        if refit == "all-observed":
            provenance[SEEN_TEST_MASK] = mask_sha256(dataset.default_test_mask())
        if model is None:
            _copy_model(member, folder, provenance)
        else:
            scores = {f"search_{name}": value for name, value in member.trial.metrics.items()}
            described = model.with_metadata(dataset.scaler, dataset.feature_names)
            save_model(folder, described, metrics=scores, provenance=provenance)
        weight, error = chosen.weights[rank - 1], chosen.errors[rank - 1]
        written.append(EnsembleMember(folder.name, member.trial.name, weight, error, manifest_hash(folder)))
    return written


def _write_regression(
    new: Path, choice: RegressionChoice | None, chosen: Chosen, models: Sequence[FittedModel | None], rows: MaskedRows
) -> EnsembleRegression | None:
    """Fits the regression that goes with the members, if one does, to the rows they were trained on."""
    if choice is None:
        return None
    own = (model or load_model(member.folder) for member, model in zip(chosen.members, models, strict=True))
    trained = weighted_sum((model.reconstruct_train(rows.x.shape[1]) for model in own), chosen.weights)
    return write_regression(new, choice.fit(rows, trained), choice.gain)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Makes sure that an export may write ``out``.

    Raises:
        VadtuneError: It cannot be written.
        ModelFolderError: It holds something; never replaced is what an export did not write.
    """
    if out.exists() and not out.is_dir():
        raise ModelFolderError(f"{out}: must be a folder, and is a file; name another folder by --out")
    check_writable(out.absolute().parent)
    entries = sorted(out.iterdir()) if out.exists() else []
    others = [entry.name for entry in entries if entry.name not in _ALSO_OURS and not _was_exported(entry)]
    if others:
        raise ModelFolderError(
            f"{out}: must be new, empty or an earlier export, and holds {', '.join(others[:3])}; "
            "name another folder by --out"
        )
    if entries and not overwrite:
        raise ModelFolderError(f"{out}: holds an earlier export; replace it with --overwrite, or name another by --out")


def _was_exported(folder: Path) -> bool:
    try:
        return PARENT_RUN in read_manifest(folder)["provenance"]
    except ModelFolderError:  # no model, or one that was altered: not ours to replace
        return False


def _copy_model(member: Candidate, target: Path, provenance: dict[str, str]) -> None:
    """Copies a model folder, checked, with a provenance of its own; weights stay bit for bit what was scored."""
    target.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(member.folder / name, target / name)
    write_manifest(target, provenance)


def _provenance(search: SearchRun, trial: Trial) -> dict[str, str]:
    return {
        "experiment": search.experiment,
        "search": search.name,
        "trial": trial.name,
        "trial_end": trial.end,
        "mlflow_run_id": trial.run_id,
        PARENT_RUN: search.run_id,
        "tracking_uri": without_secrets(search.tracking_uri),
    }


def _log(search: SearchRun, out: Path, ensemble: Ensemble) -> None:
    """Tells the search's run of the ensemble; failing to is not failing the export."""
    values = {
        "ensemble_held_out_rmse": ensemble.whole_rmse,
        "ensemble_best_single_held_out_rmse": ensemble.best_unseen_rmse,
        "ensemble_members": float(len(ensemble.members)),
    }
    weights: dict[str, float] = {}
    for member in ensemble.members:  # of one trial may be several, of several seeds
        weights[member.trial] = weights.get(member.trial, 0.0) + member.weight
    tags = {ENSEMBLE_TAG: ensemble.line(), f"{ENSEMBLE_TAG}.weights": json.dumps(weights)}
    try:
        client = connect_existing(search.tracking_uri)
        log_to_run(client, search.run_id, metrics=values, tags=tags, artifacts=[out / ENSEMBLE_FILE])
    except Exception as error:  # of many kinds, by store; the models are on disk already
        logger.warning("the ensemble was not logged to MLflow: %s", str(error).splitlines()[0])
