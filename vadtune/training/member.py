"""A configuration in training: how far it is, and what resuming it needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vadtune.config import TrialConfig
from vadtune.models import Architecture
from vadtune.models.padding import agreement
from vadtune.training.optimiser import Plateau

State = dict[str, Tensor]
"""All that resuming one member needs: weights (M,), weight_moments (2, M), rows (n, s), row_moments (2, n, s),
progress (epoch, seconds), the sums of the last epoch, and what the schedule plateau has seen, as plateau (3,)."""


@dataclass(eq=False)
class Member:
    """One configuration in training; equal to none but itself.

    Attributes:
        config: The configuration.
        epoch: Number of completed epochs.
        train_seconds: Time spent training so far, shared evenly by the members trained together.
        metrics: Sums of the last epoch: train_loss, train_reconstruction (squared error per observed cell, whatever the
            noise), train_kl (nats posterior parameters).
        plateau: What the schedule plateau has seen; untouched by others.
    """

    config: TrialConfig
    epoch: int = 0
    train_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    plateau: Plateau = field(default_factory=Plateau)

    @property
    def finished(self) -> bool:
        """Whether it has completed its epochs."""
        return self.epoch >= self.config.train.epochs

    def divergence(self) -> str | None:
        """Returns why the member cannot go on, None if it can."""
        for name, value in self.metrics.items():
            if value != value or abs(value) == float("inf"):
                return f"diverged: {name} became NaN or infinite in epoch {self.epoch}"
        return None


def signature(config: TrialConfig, features: int, *, pad: bool = False) -> tuple[object, ...]:
    """Returns what configurations must share to be one population: shapes (with ``pad``, those that padding does not
    make equal) and activation (not with ``pad``), batches, optimiser, seed, precision, inference."""
    train = config.train
    shared = train.epochs, train.batch_size, train.optimiser, train.schedule, train.seed, train.precision, train.compile
    how = config.infer.steps, config.infer.start, config.infer.prior
    architecture = Architecture.of(config.model, features)
    return (*(agreement(architecture) if pad else architecture), *shared, *how)
