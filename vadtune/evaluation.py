"""Scoring a population in training: the metrics a trial reports."""

from __future__ import annotations

import time

import numpy as np

from vadtune.data import SearchData
from vadtune.errors import TrialDiverged
from vadtune.inference import reconstruct
from vadtune.metrics import score
from vadtune.training import Population


def evaluate(population: Population, data: SearchData) -> list[dict[str, float]]:
    """Infers the validation rows without their held-out cells and scores every member.

    Returns:
        For each member the metrics of ``config.REPORTED_METRICS``. Errors are in the scaler's units;
        ``val_missing_*`` are over held-out observed validation cells, ``val_observed_rmse`` is over the cells
        inference was given; seconds are shared by the members.

    Raises:
        TrialDiverged: A score is NaN or infinite.
    """
    start = time.perf_counter()
    given, truth, held_out = data.validation
    x_hat = reconstruct(population.models(), given)
    seconds = time.perf_counter() - start
    results = []
    for member, member_x_hat in zip(population.members, x_hat, strict=True):
        if not np.isfinite(member_x_hat).all():
            raise TrialDiverged(f"diverged: a reconstruction became NaN or infinite after epoch {member.epoch}")
        missing, observed = score(member_x_hat, truth, held_out), score(member_x_hat, truth, given.mask)
        results.append(
            {
                "val_missing_rmse": missing.rmse,
                "val_missing_mae": missing.mae,
                "val_observed_rmse": observed.rmse,
                **member.metrics,
                "train_seconds": member.train_seconds,
                "inference_seconds": seconds,
            }
        )
    return results
