"""A configuration in training: its progress, and what it must share with others to train as one population."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vadtune.config import TrialConfig
from vadtune.models import Architecture
from vadtune.training.optimiser import Plateau

State = dict[str, Tensor]
"""Everything that resuming one member needs: weights (M,), weight_moments (2, M), rows (n, s), row_moments (2, n, s),
progress (epoch, seconds), the metrics of the last epoch, and with the schedule plateau its state as plateau (3,)."""


@dataclass(eq=False)
class Member:
    """One configuration in training; compared by identity.

    Attributes:
        config: The configuration.
        epoch: Number of completed epochs.
        train_seconds: Training time so far; members trained together share it evenly.
        metrics: Of the last epoch: train_loss, train_reconstruction (squared error per observed cell, not scaled by the
            observation noise), train_kl (nats per row).
        plateau: State of the schedule plateau.
    """

    config: TrialConfig
    epoch: int = 0
    train_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    plateau: Plateau = field(default_factory=Plateau)

    @property
    def finished(self) -> bool:
        """Whether the member has completed its epochs."""
        return self.epoch >= self.config.train.epochs

    def divergence(self) -> str | None:
        """Returns the reason why the member has diverged, None if it has not."""
        for name, value in self.metrics.items():
            if value != value or abs(value) == float("inf"):
                return f"diverged: {name} became NaN or infinite in epoch {self.epoch}"
        return None


def signature(config: TrialConfig, features: int) -> tuple[object, ...]:
    """Returns the settings that configurations must share to train as one population.

    These are the architecture, batches, optimiser, schedule, seed, precision, compile and kind of inference.
    """
    train = config.train
    shared = train.epochs, train.batch_size, train.optimiser, train.schedule, train.seed, train.precision, train.compile
    infer = config.infer.steps, config.infer.start, config.infer.prior
    return (*Architecture.of(config.model, features), *shared, *infer)
