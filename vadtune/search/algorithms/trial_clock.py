"""How long trials take by the arithmetic they do: the clock of ``logical_order``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vadtune.config import ModelConfig, SearchFile
from vadtune.search.algorithms.schedulers import report_epochs

# Seconds, fitted to 64 trials of digits on an EPYC core, of which half are met within 5 %; only their ratios matter.
_PRODUCT = 2.5e-11  # a multiplication and an addition of a matrix product
_VALUE = 2.6e-9  # a value of a row that is looked at: cells, hidden units, latents
_SOLVE = 1.6e-10  # a multiplication and an addition in solving a linear system
_EARLY_STEPS = 0.3  # share of the inference steps before a trial's end, see training/scoring.py
_SETTLED = 30  # epochs after which a closed-form decoder has settled


def trial_clock(
    search: SearchFile, train_rows: int, inferred_rows: int, columns: int
) -> Callable[[Mapping[str, Any]], dict[int, float]]:
    """Returns a function from a sample to the times of its reports: epoch -> seconds since the trial began.

    Args:
        search: The search file.
        train_rows: Number of train rows.
        inferred_rows: Number of rows that a score infers, over all folds.
        columns: Number of columns.
    """
    due = report_epochs(search.search, search.epochs)

    def times(sample: Mapping[str, Any]) -> dict[int, float]:
        trial = search.trial_config(sample)
        if trial.model.closed_form:
            k = trial.model.latent
            of_row = _SOLVE * (columns * k * k + k**3)
            return {epoch: of_row * (train_rows * min(epoch, _SETTLED) + inferred_rows) for epoch in due}
        values = columns + trial.model.latent + trial.model.layers * trial.model.hidden
        of_row = 3 * _PRODUCT * decoder_weights(trial.model, columns) + _VALUE * values
        of_score = inferred_rows * trial.infer.steps * of_row * 2 / 3  # no gradient of the weights
        scores = [of_score * (1.0 if epoch == due[-1] else _EARLY_STEPS) for epoch in due]
        return {epoch: epoch * train_rows * of_row + sum(scores[: index + 1]) for index, epoch in enumerate(due)}

    return times


def decoder_weights(model: ModelConfig, columns: int) -> int:
    """Returns the number of weights of a decoder, to which the arithmetic of an epoch is proportional."""
    if model.layers == 0:
        return model.latent * columns
    return model.latent * model.hidden + (model.layers - 1) * model.hidden**2 + model.hidden * columns
