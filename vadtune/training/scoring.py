"""Scoring a population in training: the metrics a trial reports."""

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
from vadtune.models import Architecture
from vadtune.training.inference import infer
from vadtune.training.member import Member
from vadtune.training.population import Population

_EARLY_EFFORT = 0.3
"""Share of the inference steps that is enough to rank unfinished trials: on random digits configurations after a ninth
of the epochs, the ranking by 30 steps agrees with that by 100 to a Spearman correlation of .996 (by 15 steps: .96)."""

_NEXT_EFFORT = 0.1
"""The same from the posteriors of a report shortly before: 5 epochs later, 10 steps from there agree with 100 steps to
.98, 30 steps from the nearest train row to .88. From a report far behind, as those at ASHA's rungs are, steps are lost:
56 epochs later 10 steps agree to .88, from the nearest train row to .89 (12 nonlinear digits configurations)."""

_SHORTLY = 0.1  # of the epochs there were: how far behind a report may be to start from its posteriors


def follows_shortly(epoch: int, last: int) -> bool:
    """Returns whether a report at an epoch should start from the posteriors of the last one."""
    return 0 < epoch - last <= _SHORTLY * last


class Evaluation(NamedTuple):
    """What one configuration is worth.

    Attributes:
        scores: The metrics of ``config.REPORTED_METRICS``.
        held_out: What it predicts for the held-out cells, float32 (c,), in the order of ``HeldOut.values``.
        posteriors: Statistics of the validation rows (f*n, s), from which the next evaluation may start.
    """

    scores: dict[str, float]
    held_out: np.ndarray
    posteriors: Tensor


class _How(NamedTuple):
    """What members must agree in to be inferred together; those that padding made one architecture are not."""

    architecture: Architecture
    finished: bool
    nearby: bool  # from the posteriors of a report shortly before

    @property
    def effort(self) -> float:
        return 1.0 if self.finished else _NEXT_EFFORT if self.nearby else _EARLY_EFFORT


def evaluate(
    population: Population,
    data: SearchData,
    members: Sequence[Member] | None = None,
    *,
    start: Sequence[Tensor | None] | None = None,
) -> list[Evaluation]:
    """Infers the validation rows without their held-out cells and scores every member, or those given.

    Members that have not completed their epochs are inferred with fewer steps: their scores only decide who goes on.
    Those that have are inferred as new rows are, wherever they might start from.

    Args:
        population: The members.
        data: What a search sees.
        members: Some of them; all without it.
        start: Posteriors of each member at a report shortly before, where there was one.

    Returns:
        The evaluation of each member. Errors are in the scaler's units; ``val_missing_*`` are over held-out observed
        validation cells, ``val_observed_rmse`` is over the cells inference was given; seconds are shared by the
        members.

    Raises:
        TrialDiverged: A score is NaN or infinite.
    """
    began = time.perf_counter()
    given, truth, held_out = data.validation
    members = population.members if members is None else members
    models, amortised = population.models(members), population.family.amortised
    starts = [None] * len(members) if start is None or amortised else start  # an encoder says where to start
    groups: dict[_How, list[int]] = {}
    for i, (model, member, near) in enumerate(zip(models, members, starts, strict=True)):
        architecture = Architecture.of(model.config.model, given.x.shape[1])
        groups.setdefault(_How(architecture, member.finished, near is not None and not member.finished), []).append(i)
    x_hat, posteriors = np.empty((len(models), *given.x.shape), np.float32), [torch.empty(0)] * len(models)
    for how, group in groups.items():
        nearby = [near for i in group if (near := starts[i]) is not None] if how.nearby else None
        found = infer([models[i] for i in group], given, effort=how.effort, start=nearby)
        for index, i in enumerate(group):
            x_hat[i], posteriors[i] = found.x_hat[index], found.posterior_params[index]
    seconds = time.perf_counter() - began
    results = []
    for member, member_x_hat, posterior in zip(members, x_hat, posteriors, strict=True):
        if not np.isfinite(member_x_hat).all():
            raise TrialDiverged(f"diverged: a reconstruction became NaN or infinite after epoch {member.epoch}")
        missing, observed = score(member_x_hat, truth, held_out), score(member_x_hat, truth, given.mask)
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
