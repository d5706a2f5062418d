"""Choice of an ensemble's members and weights among the candidates, on held-out cells; test rows play no part.

The cells are those of the validation rows, which every trial predicted when the search scored it. Where rows are few,
they are those of all train and validation rows, predicted by cross-validation with models trained again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vadtune.artifacts.model_folder import load_model
from vadtune.core.sampling import sample_rows
from vadtune.data import IncompleteDataset
from vadtune.ensemble.candidates import Candidate
from vadtune.ensemble.regression_choice import (
    RegressionChoice,
    RegressionSplit,
    can_regress,
    choose_regression,
    train_support,
    worth_its_time,
)
from vadtune.ensemble.selection import (
    Selection,
    greedy_by_ratio,
    parse_ensemble,
    residual_gram,
    select,
    top,
    weighted_sum,
)
from vadtune.training.refit import Trainer

FEW_ROWS = 600  # with fewer train and validation rows, weights are chosen on all of them
MOST_FITS = 6  # of a refit: if members are fewer, the heaviest are trained with several seeds
LARGE_TABLE = 1_000_000  # cells of the rows of a refit; with more, members are repeated within the epochs of the search
_MOST_VALIDATION_ROWS = 1000  # to choose a regression on, and
_MOST_VALIDATION_CELLS = 200_000  # of the table in these rows: enough for its three hyperparameters

# These bound the cost of an export, on breast_cancer to three tenths of the search's time. Models trained with a third
# of the steps gave weights with an error of 0.5187 over the cells of all train and validation rows, predicted by fully
# trained models; all steps gave 0.5180, weights chosen on the validation rows 0.5237. With four candidates instead of
# six, and a fifth of the steps, the cross-validated error of the export rose from 0.5064 to 0.5066.
_ROW_CANDIDATES = 4  # each is trained five times
_ROW_EFFORT = 1 / 5


class Member(NamedTuple):
    """A selected candidate, its weight, and its error alone (RMSE over the held-out cells, in the scaler's units)."""

    candidate: Candidate
    weight: float
    rmse: float


class MemberChoice(NamedTuple):
    """Members, how they were chosen, and the regression that goes with them.

    Attributes:
        members: The members, lowest error first; their weights have sum 1.
        selection: The errors of the weighted mean over the held-out cells.
        held_out: The held-out cells in words.
        cells: Number of held-out cells.
        missing_ratio: Share of missing cells in the validation rows.
        regression: The regression to mix with their mean, or None.
    """

    members: list[Member]
    selection: Selection
    held_out: str
    cells: int
    missing_ratio: float
    regression: RegressionChoice | None = None


def choose_members(
    candidates: Sequence[Candidate],
    dataset: IncompleteDataset,
    ensemble: str,
    *,
    trainer: Trainer,
    refit: str,
    regress: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> MemberChoice:
    """Chooses members and their weights.

    Args:
        candidates: From ``find_candidates``.
        dataset: From ``find_candidates``.
        ensemble: ``greedy``, ``top:K`` or ``best``.
        trainer: A trainer on the rows of the refit, the train rows first, then the validation rows.
        refit: One of ``REFITS``; with ``none`` no model is trained to choose members either.
        regress: Whether a greedy ensemble may be mixed with a regression.
        progress: Called with a line of text before a long step.
    """
    count = parse_ensemble(ensemble)
    regress = regress and count is None and can_regress(dataset.train.x.shape[1])
    validation, held_out = dataset.validation, dataset.search_data.validation
    ratio = float(1 - validation.mask.mean())

    def weights_of(gram: np.ndarray) -> np.ndarray:
        return greedy_by_ratio(gram, ratio) if count is None else top(gram, count)

    def choose(
        among: Sequence[Candidate], predictions: Sequence[np.ndarray], truth: np.ndarray, rows: np.ndarray, cells: str
    ) -> MemberChoice:
        gram = residual_gram(predictions, truth, rows)
        selection, errors = select(gram, weights_of), np.sqrt(np.diag(gram.sum(0)))
        every = map(Member, among, selection.weights.tolist(), errors.tolist())
        members = sorted((member for member in every if member.weight), key=lambda member: member.rmse)
        return MemberChoice(members, selection, f"held-out cells of the {cells} rows", len(truth), ratio)

    rows = np.nonzero(held_out.cells)[0] % len(dataset.scored_rows)
    predictions = [candidate.held_out for candidate in candidates]
    on_validation = choose(candidates, predictions, held_out.values, rows, "validation")
    known = len(dataset.all_train.x) + (0 if refit == "train" else len(validation.x))
    if count is not None:
        return on_validation
    if refit == "none" or known >= FEW_ROWS or len(candidates) == 1:
        if not regress:
            return on_validation
        progress("choosing a regression to mix with the models")
        choice = choose_regression([_validation_split(on_validation, dataset)])
        return on_validation._replace(regression=worth_its_time(choice, known, dataset.train.x.shape[1], progress))
    taken = [member.candidate for member in on_validation.members]
    names = {candidate.trial.run_id for candidate in taken}
    few = [*taken, *(other for other in candidates if other.trial.run_id not in names)][:_ROW_CANDIDATES]
    progress(f"training {len(few)} models on four fifths of {known} rows, five times, to choose weights")
    fits = [candidate.fit(dataset, known * 4 // 5, effort=_ROW_EFFORT) for candidate in few]
    cross = trainer.cross_fit(fits, known, dataset.config.holdout, seed=dataset.config.missing.seed)
    if not cross.sound:
        return on_validation
    among, predictions = [few[i] for i in cross.sound], [cross.predictions(i) for i in cross.sound]
    chosen = choose(among, predictions, cross.truth, cross.rows, "train and validation")
    if not regress:
        return chosen
    fit_of = {few[i].trial.run_id: i for i in cross.sound}
    weight_of = {fit_of[member.candidate.trial.run_id]: member.weight for member in chosen.members}

    def mean(x_hats: Mapping[int, np.ndarray]) -> np.ndarray:
        return weighted_sum((x_hats[i] for i in weight_of), list(weight_of.values()))

    splits = [
        RegressionSplit(fold.train, mean(fold.trained), fold.held_out, len(fold.inside), mean(fold.x_hat))
        for fold in cross.folds
    ]
    return chosen._replace(regression=choose_regression(splits))


def _validation_split(choice: MemberChoice, dataset: IncompleteDataset) -> RegressionSplit:
    """Returns support rows and validation rows with their held-out cells, reconstructed by the members."""
    n, features = len(dataset.scored_rows), dataset.train.x.shape[1]
    most = min(_MOST_VALIDATION_ROWS, max(1, _MOST_VALIDATION_CELLS // features))
    rows = sample_rows(n, most)
    held_out = dataset.search_data.validation.of_rows(rows, n)
    models = [load_model(member.candidate.folder) for member in choice.members]
    weights = [member.weight for member in choice.members]
    train, train_x_hat = train_support(dataset.train, models, weights)
    x_hat = weighted_sum((model.reconstruct(held_out.visible) for model in models), weights)
    return RegressionSplit(train, train_x_hat, held_out, len(rows), x_hat)


def with_seeds(members: Sequence[Member], most_epochs: float = math.inf) -> list[Member]:
    """Repeats the heaviest members with other training seeds, up to MOST_FITS members; repeats share the weight.

    Args:
        members: The members.
        most_epochs: No member is repeated if the epochs of all trainings, as long as in the search, would be more.

    The mean over initial weights and batch orders of one configuration is better than any single one: on random digits
    at a missing ratio of 0.1 three seeds of the best trial have a held-out RMSE of 0.1213, one has 0.1265. Closed-form
    decoders do not depend on a seed and are not repeated.
    """
    weights = np.array([0.0 if member.candidate.config.model.closed_form else member.weight for member in members])
    epochs = np.array([member.candidate.trial.epoch for member in members])
    counts = np.ones(len(members), dtype=int)
    while counts.sum() < MOST_FITS:
        shares = weights / counts
        if shares.max() * MOST_FITS < 1:  # too light to matter
            break
        counts[shares.argmax()] += 1
        if counts @ epochs > most_epochs:
            counts[shares.argmax()] -= 1
            break
    return [
        Member(member.candidate.with_seed(offset), member.weight / count, member.rmse)
        for member, count in zip(members, counts.tolist(), strict=True)
        for offset in range(count)
    ]
