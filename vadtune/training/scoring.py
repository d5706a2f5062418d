"""Validation scores of a population in training: the metrics that a trial reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadtune.core.errors import TrialDiverged
from vadtune.core.metrics import score
from vadtune.data import SearchData
from vadtune.training.inference import infer
from vadtune.training.member import Member
from vadtune.training.population import Population

_EARLY_EFFORT = 0.3
"""Share of the inference steps for unfinished trials. On digits, for random configurations after a ninth of the
epochs, the ranking by 30 steps has a Spearman correlation of .996 with that by 100 (15 steps: .96)."""

_NEXT_EFFORT = 0.1
"""The same from the posteriors of a report shortly before. 5 epochs later, the ranking by 10 steps from there has a
correlation of .98 with that by 100 steps, 30 steps from the nearest train row .88. From a report far behind nothing is
gained: 56 epochs later, 10 steps give .88, from the nearest train row .89 (12 nonlinear digits configurations)."""

_STEP_COST = 2 / 3  # of an inference step of a row, in units of a training step: no gradient of the weights

_SHORTLY = 0.1  # share of the last report's epochs up to which the next one starts from its posteriors


def _effort(member: Member, train_rows: int, rows: int) -> float:
    """Returns the share of the inference steps that a member's score takes: all at its end, else at most 30 %.

    Fewer where they would cost more than the training that they judge, but at least 10 %.

    Args:
        member: The member.
        train_rows: Number of train rows.
        rows: Number of rows to infer, over all folds.
    """
    if member.finished:
        return 1.0
    affordable = member.epoch * train_rows / (_STEP_COST * rows * max(1, member.config.infer.steps))
    return min(_EARLY_EFFORT, max(_NEXT_EFFORT, affordable))


def follows_shortly(epoch: int, last: int) -> bool:
    """Returns whether inference at an epoch should start from the posteriors of the last report."""
    return 0 < epoch - last <= _SHORTLY * last


class Evaluation(NamedTuple):
    """Scores and predictions of one configuration.

    Attributes:
        scores: The metrics of ``config.REPORTED_METRICS``.
        held_out: Predictions of the held-out cells, float32 (c,), in the order of ``HeldOut.values``.
        posteriors: Posterior parameters of the validation rows (f*n, s); the next evaluation may start from them.
    """

    scores: dict[str, float]
    held_out: np.ndarray
    posteriors: Tensor


def evaluate(
    population: Population,
    data: SearchData,
    members: Sequence[Member] | None = None,
    *,
    start: Sequence[Tensor | None] | None = None,
) -> list[Evaluation]:
    """Returns the validation scores of members: infers the rows without their held-out cells and scores those.

    Unfinished members take fewer inference steps, since their scores only decide which trials continue. Finished
    members take all steps from ``infer.start``, as for new rows.

    Args:
        population: The population.
        data: Train and validation rows of a search.
        members: The members to score; all by default.
        start: Posteriors of each member at a report shortly before, or None.

    Returns:
        The evaluation of each member. Errors are in the scaler's units; ``val_missing_*`` are over held-out observed
        validation cells, ``val_observed_rmse`` is over the cells that inference saw; ``inference_seconds`` is the
        total of the members.

    Raises:
        TrialDiverged: A score is NaN or infinite.
    """
    began = time.perf_counter()
    visible, truth, held_out = data.validation
    members = population.members if members is None else members
    models, amortised = population.models(members), population.family.amortised
    starts = [None] * len(members) if start is None or amortised else start  # an encoder says where to start
    groups: dict[tuple[float, bool], list[int]] = {}
    for i, (member, near) in enumerate(zip(members, starts, strict=True)):
        nearby = near is not None and not member.finished
        effort = _NEXT_EFFORT if nearby else _effort(member, len(data.train.x), len(visible.x))
        groups.setdefault((effort, nearby), []).append(i)
    x_hat, posteriors = np.empty((len(models), *visible.x.shape), np.float32), [torch.empty(0)] * len(models)
    for (effort, nearby), group in groups.items():
        posteriors_before = [near for i in group if (near := starts[i]) is not None] if nearby else None
        found = infer([models[i] for i in group], visible, effort=effort, start=posteriors_before)
        for index, i in enumerate(group):
            x_hat[i], posteriors[i] = found.x_hat[index], found.posterior_params[index]
    seconds = time.perf_counter() - began
    results = []
    for member, member_x_hat, posterior in zip(members, x_hat, posteriors, strict=True):
        if not np.isfinite(member_x_hat).all():
            raise TrialDiverged(f"diverged: a reconstruction became NaN or infinite after epoch {member.epoch}")
        missing, observed = score(member_x_hat, truth, held_out), score(member_x_hat, truth, visible.mask)
        scores = {
            "val_missing_rmse": missing.rmse,
            "val_missing_mae": missing.mae,
            "val_observed_rmse": observed.rmse,
            **member.metrics,
            "train_seconds": member.train_seconds,
            "inference_seconds": seconds,
        }
        results.append(Evaluation(scores, member_x_hat[held_out], posterior))
    return results
