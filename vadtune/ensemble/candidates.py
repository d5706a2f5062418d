"""Which trials of a search become the members of its ensemble, and with which weights.

Decided on held-out cells alone: on those of the validation rows, which every trial predicted when it was scored, or,
where rows are few, on those of all train and validation rows, predicted by models trained on the other rows. Test rows
play no part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadtune.artifacts.model_folder import find_model_folders, load_held_out, load_model, read_manifest
from vadtune.config import TrialConfig, load_trial
from vadtune.core.errors import ConfigError, ModelFolderError, VadtuneError
from vadtune.core.files import fetch_folder
from vadtune.data import IncompleteDataset
from vadtune.ensemble.kernel_regression import Completed, RegressionChoice, can_regress, choose_regression
from vadtune.ensemble.model_average import shared_dataset
from vadtune.ensemble.selection import Selection, greedy_by_ratio, residual_products, select, top, weighted_sum
from vadtune.tracking import Trial
from vadtune.tracking.queries import ranked
from vadtune.training.refit import Fit, Trainer, same_steps

logger = logging.getLogger(__name__)

MOST_CANDIDATES = 32
"""Of a search's trials, best first: poorer ones are hardly ever taken, and predictions need memory."""

FEW_ROWS = 600
"""With fewer train and validation rows weights are chosen on all of them: validation cells alone are too few."""

# These bound what an export costs beside the search: on breast_cancer three tenths of its time. Models trained on a
# third of the steps gave weights worth .5187 over the cells of all train and validation rows, predicted by models
# trained in full; all steps .5180, weights found on the validation rows .5237. With four candidates in place of six,
# and a fifth of the steps, the error that export itself states moved from .5064 to .5066.
_ROW_CANDIDATES = 4  # each is trained five times
_ROW_EFFORT = 1 / 5

_MOST_VALIDATION_ROWS = 1000  # to choose a regression on: more cells would tell no more of three numbers

MOST_FITS = 6
"""Trainings of a refit: what the members leave of them goes to further seeds of the heaviest."""


class Candidate(NamedTuple):
    """A trial whose model and held-out predictions are here.

    Attributes:
        trial: As the store holds it.
        folder: Its model folder.
        config: Its configuration.
        held_out: What it predicts for the held-out validation cells, float32 (c,).
    """

    trial: Trial
    folder: Path
    config: TrialConfig
    held_out: np.ndarray

    def fit(self, dataset: IncompleteDataset, rows: int, *, effort: float = 1.0) -> Fit:
        """Returns what trains its configuration on another number of rows for as many steps as it had."""
        before = len(dataset.train.x)
        return same_steps(self.config, self.trial.epoch, rows_before=before, rows=rows, effort=effort)

    def with_seed(self, further: int) -> Candidate:
        """Returns the candidate with another seed; itself for 0."""
        train = self.config.train
        seeded = train.model_copy(update={"seed": (train.seed + further) % 2**32})
        return self._replace(config=self.config.model_copy(update={"train": seeded}))


class Chosen(NamedTuple):
    """Members, best first, and how they were chosen.

    Attributes:
        members: The candidates that were taken.
        weights: Of each, with sum 1.
        errors: Of each alone, RMSE over the held-out cells.
        selection: What the weighted mean is worth on them.
        held_out: What these cells are, in words.
        cells: Their number.
        missing_ratio: Share of the validation rows' cells that are missing.
        regress: Chooses what is mixed with their mean, None where nothing is; takes seconds.
    """

    members: list[Candidate]
    weights: list[float]
    errors: list[float]
    selection: Selection
    held_out: str
    cells: int
    missing_ratio: float
    regress: Callable[[], RegressionChoice | None] = lambda: None


def parse_ensemble(text: str) -> int | None:
    """Returns how many of the best models are averaged alike; None for greedy selection.

    Raises:
        ConfigError: It is not ``greedy``, ``best`` or ``top:K``.
    """
    if text in ("greedy", "best"):
        return None if text == "greedy" else 1
    kind, _, count = text.partition(":")
    if kind != "top" or not (count.isascii() and count.isdigit()) or not 1 <= int(count) <= MOST_CANDIDATES:
        raise ConfigError(f"--ensemble: takes greedy, best or top:K with K from 1 to {MOST_CANDIDATES}, got '{text}'")
    return int(count)


def find_candidates(
    name: str, trials: Sequence[Trial], metric: str, most: int, fetched: Path
) -> tuple[list[Candidate], IncompleteDataset]:
    """Returns the best trials that can be members, best first, and the data they were trained on.

    Args:
        name: Of the search.
        trials: Its trials.
        metric: What ranks them; lower is better.
        most: How many to return at most.
        fetched: Where what is kept behind a URI is copied to.

    Raises:
        ModelFolderError: There is none, or one is damaged.
        DataError: The data cannot be loaded here.
    """
    dataset: IncompleteDataset | None = None
    found: list[Candidate] = []
    for trial in ranked(trials, metric):
        folder = _model_folder(trial, fetched)
        if folder is None:
            continue
        read_manifest(folder)
        if dataset is None:
            dataset = shared_dataset([(trial.name, load_model(folder))])
        try:
            held_out = load_held_out(folder.parent, dataset.search_data.validation)
        except ModelFolderError as error:
            logger.warning("%s is passed over: %s", trial.name, str(error).partition(";")[0])
            continue
        found.append(Candidate(trial, folder, load_trial(folder / "config.yaml"), held_out))
        if len(found) == most:
            break
    if dataset is None or not found:
        raise ModelFolderError(
            f"{name}: none of its {len(trials)} trials has both a score and a checkpoint that can be read here; "
            "export where the search ran, or search again"
        )
    return found, dataset


def choose_members(
    candidates: Sequence[Candidate],
    dataset: IncompleteDataset,
    ensemble: str,
    *,
    trainer: Trainer,
    refit: str,
    regress: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Chosen:
    """Chooses members and weights.

    Args:
        candidates: From ``find_candidates``.
        dataset: Likewise.
        ensemble: ``greedy``, ``top:K`` or ``best``.
        trainer: Of the rows the members are to be trained on anew, the train rows first, then the validation rows.
        refit: Which these are: with ``none`` nothing is trained to choose members either.
        regress: Whether a greedy ensemble may be mixed with a regression.
        progress: Is told what is being done.
    """
    count = parse_ensemble(ensemble)
    regress = regress and can_regress(dataset.train.x.shape[1])
    validation, held_out = dataset.validation, dataset.search_data.validation
    ratio = float(1 - validation.mask.mean())

    def choose(products: np.ndarray) -> np.ndarray:
        return greedy_by_ratio(products, ratio) if count is None else top(products, count)

    def chosen(
        among: Sequence[Candidate], predictions: Sequence[np.ndarray], truth: np.ndarray, rows: np.ndarray, over: str
    ) -> Chosen:
        products = residual_products(predictions, truth, rows)
        selection, errors = select(products, choose), np.sqrt(np.diag(products.sum(0)))
        taken = sorted(np.flatnonzero(selection.weights).tolist(), key=lambda i: (float(errors[i]), i))
        members, weights = [among[i] for i in taken], [float(selection.weights[i]) for i in taken]
        return Chosen(members, weights, [float(errors[i]) for i in taken], selection, over, len(truth), ratio)

    rows = np.nonzero(held_out.cells)[0] % len(validation.x)
    predictions = [candidate.held_out for candidate in candidates]
    first = chosen(candidates, predictions, held_out.values, rows, "held-out cells of the validation rows")
    known = len(dataset.train.x) + (0 if refit == "train" else len(validation.x))
    if count is not None:
        return first
    if refit == "none" or known >= FEW_ROWS or len(candidates) == 1:
        if not regress:
            return first
        return first._replace(regress=lambda: choose_regression([_completed(first, dataset)]))
    taken = {member.trial.run_id for member in first.members}
    others = [candidate for candidate in candidates if candidate.trial.run_id not in taken]
    few = [*first.members, *others][:_ROW_CANDIDATES]
    progress(f"training {len(few)} models on four fifths of {known} rows, five times, to choose weights")
    fits = [candidate.fit(dataset, known * 4 // 5, effort=_ROW_EFFORT) for candidate in few]
    cross = trainer.cross_fit(fits, known, dataset.config.holdout, seed=dataset.config.missing.seed)
    if not cross.sound:
        return first
    among, predictions = [few[i] for i in cross.sound], [cross.predictions(i) for i in cross.sound]
    found = chosen(among, predictions, cross.truth, cross.rows, "held-out cells of the train and validation rows")
    if not regress:
        return found
    fit_of = {few[i].trial.run_id: i for i in cross.sound}
    taken_fits = [fit_of[member.trial.run_id] for member in found.members]

    def mean(of_fits: Mapping[int, np.ndarray]) -> np.ndarray:
        return weighted_sum((of_fits[i] for i in taken_fits), found.weights)

    splits = [
        Completed(fold.train, mean(fold.trained), fold.held_out, len(fold.inside), mean(fold.x_hat))
        for fold in cross.folds
    ]
    return found._replace(regress=lambda: choose_regression(splits))


def _completed(chosen: Chosen, dataset: IncompleteDataset) -> Completed:
    """Returns the train rows, and validation rows with their held-out cells, as members see them."""
    n, features = len(dataset.validation.x), dataset.train.x.shape[1]
    rows = np.sort(np.random.default_rng(0).permutation(n)[:_MOST_VALIDATION_ROWS])
    held_out = dataset.search_data.validation.of_rows(rows, n)
    models = [load_model(member.folder) for member in chosen.members]
    trained = weighted_sum((model.reconstruct_train(features) for model in models), chosen.weights)
    x_hat = weighted_sum((model.reconstruct(held_out.visible) for model in models), chosen.weights)
    return Completed(dataset.train, trained, held_out, len(rows), x_hat)


def with_seeds(chosen: Chosen) -> Chosen:
    """Lets the heaviest members be trained from several seeds, which share the weight.

    The mean over initial weights and batches of one configuration is better than any of them: on random digits at a
    missing ratio of .1 three seeds of the best have a held-out RMSE of .1213, one has .1265. Solved decoders, which do
    not depend on a seed, stay alone.
    """
    seeded = [not member.config.model.closed_form for member in chosen.members]
    counts = np.ones(len(seeded), dtype=int)
    while counts.sum() < MOST_FITS:
        shares = np.where(seeded, chosen.weights, 0.0) / counts
        if shares.max() * MOST_FITS < 1:  # too light to matter
            break
        counts[shares.argmax()] += 1
    copies = [(i, further) for i, count in enumerate(counts.tolist()) for further in range(count)]
    return chosen._replace(
        members=[chosen.members[i].with_seed(further) for i, further in copies],
        weights=[chosen.weights[i] / int(counts[i]) for i, _ in copies],
        errors=[chosen.errors[i] for i, _ in copies],
    )


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
