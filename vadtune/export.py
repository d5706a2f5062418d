"""Export: the best models of a search, one self-contained folder each."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from vadtune.checkpoint import MODEL_FILES, find_model_folders, read_manifest, write_manifest
from vadtune.errors import ModelFolderError, VadtuneError
from vadtune.files import check_writable, fetch_folder
from vadtune.results import ranked, score_of
from vadtune.tracking import SearchRun, Trial, without_secrets

logger = logging.getLogger(__name__)

PARENT_RUN = "mlflow_parent_run_id"
_ALSO_OURS = ("masks.npz", "retest")  # what a retest leaves beside the models


class Exported(NamedTuple):
    """A model that was exported."""

    folder: Path
    trial: Trial
    score: float


def export_best(
    search: SearchRun, trials: Sequence[Trial], *, metric: str, top: int, out: Path, overwrite: bool = False
) -> list[Exported]:
    """Writes the best trials' models to ``out/1-<trial>``, ``out/2-<trial>``, …; all of them or nothing.

    Args:
        search: The search the trials belong to.
        trials: Its trials.
        metric: What ranks them; lower is better.
        top: How many to export; fewer where fewer have a checkpoint.
        out: A new or empty folder.
        overwrite: Whether an earlier export in ``out`` is replaced, with its retest results.

    Raises:
        VadtuneError: ``out`` cannot be written.
        ModelFolderError: ``out`` holds something, no trial has a checkpoint, or a checkpoint is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="vadtune-") as fetched:
        return _export(search, trials, metric, top, out, overwrite, Path(fetched))


def _export(
    search: SearchRun, trials: Sequence[Trial], metric: str, top: int, out: Path, overwrite: bool, fetched: Path
) -> list[Exported]:
    check_out(out, overwrite=overwrite)
    found = ((trial, _model_folder(trial, fetched)) for trial in ranked(trials, metric))
    chosen = list(islice(((trial, source) for trial, source in found if source), top))
    if not chosen:
        raise ModelFolderError(
            f"{search.name}: none of its {len(trials)} trials has both a score and a checkpoint that can be read here; "
            "export where the search ran, or search again"
        )
    if len(chosen) < top:
        logger.warning("%d models asked for, but only %d trials have a checkpoint", top, len(chosen))
    digits = len(str(len(chosen)))  # so that names sort by rank
    out = out.absolute()
    exported = [
        Exported(out / f"{rank:0{digits}}-{trial.name}", trial, score_of(trial, metric))
        for rank, (trial, _) in enumerate(chosen, start=1)
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            for (trial, source), model in zip(chosen, exported, strict=True):
                _copy_model(source, new / model.folder.name, _provenance(search, trial))
            with suppress(FileNotFoundError):
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                old.rename(out)
                raise
    except OSError as error:
        raise ModelFolderError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    return exported


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


def _model_folder(trial: Trial, fetched: Path) -> Path | None:
    """Returns the model folder of a trial's last checkpoint, or None if there is none to be found here.

    One that is kept behind a URI is copied to a folder below ``fetched``.
    """
    if not trial.checkpoint:
        return None
    try:
        place = Path(trial.checkpoint)
        if "://" in trial.checkpoint:
            place = fetched / trial.trial_id
            fetch_folder(trial.checkpoint, place)
        return find_model_folders(place)[0]
    except VadtuneError as error:
        logger.warning("%s is passed over, its checkpoint is not here: %s", trial.name, str(error).partition(";")[0])
        return None


def _copy_model(source: Path, target: Path, provenance: dict[str, str]) -> None:
    """Copies a model folder, checked, with a provenance of its own; weights stay bit for bit what was scored."""
    read_manifest(source)
    target.mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copyfile(source / name, target / name)
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
