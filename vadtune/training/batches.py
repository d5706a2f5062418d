"""Batches of a training epoch: the order of the rows, the random draws, the learning rates.

Everything is derived from (seed, purpose, epoch). Members of a population at the same epoch share it; members at
different epochs that are trained together have their own, and the tensors get a leading axis.

Shape comments: p members, n rows, b batch rows, d features, k latent dims; [p,] is an axis that exists only for members
at different epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vadtune.config import TrialConfig
from vadtune.core.randomness import Purpose, derived_generator, standard_normal
from vadtune.training.optimiser import Table
from vadtune.training.train_rows import TrainRows

_SHUFFLED_VALUES = 2**18  # values shuffled at once: few calls, and still in the cache when their batch comes


class Batch(NamedTuple):
    """A batch of rows, in shuffled order.

    Attributes:
        number: Index of the batch in the epoch.
        rows: Positions of the rows in the shuffled order.
        x: ([p,] b, d), with 0 in place of missing cells.
        mask: ([p,] b, d) float, 1 = observed.
        weight: ([p,] b, d): 2 / normaliser where observed, 0 where missing.
        normaliser: Number of observed cells of the batch, ([p],).
        dropout: Factors on the output of every hidden layer of the decoder (p, b, hidden); None without dropout.
    """

    number: int
    rows: slice
    x: Tensor
    mask: Tensor
    weight: Tensor
    normaliser: Tensor
    dropout: list[Tensor] | None


class Epoch:
    """The data of one epoch for some members.

    Args:
        data: The train rows.
        configs: The members' configurations, which have one signature (member.py).
        epochs: How many epochs each member has completed.
        schedule: Factor on the learning rates, given the share of the steps taken.
        factors: A further factor on the learning rates of each member.

    Attributes:
        epochs: How many epochs each member has completed.
        steps: Number of batches.
        batch_size: Rows of a batch; the last may have fewer.
        order: Row indices in the order of the batches, ([p,] n).
        normaliser: Observed cells of every batch, ([p,] steps).
        eps: Standard normal draws ([p,] n, k), in row order.
        steps_before: Number of steps each member has taken before each step of the epoch, (steps, p).
        net_lr: Learning rate of each member's networks at each step, (steps, p).
        latent_lr: Learning rate of each member's row posteriors, which are updated once an epoch, (p,).
    """

    def __init__(
        self,
        data: TrainRows,
        configs: Sequence[TrialConfig],
        epochs: Sequence[int],
        schedule: Callable[[Table], Table],
        factors: Sequence[float],
    ) -> None:
        self._data, self._configs, self.epochs = data, configs, list(epochs)
        train, n = configs[0].train, data.n
        self.batch_size = min(train.batch_size, n)
        self.steps = -(-n // self.batch_size)
        done = np.array(self.epochs)
        self.steps_before = done * self.steps + np.arange(self.steps)[:, None]
        self.net_lr = np.array([c.train.net_lr for c in configs]) * factors
        self.net_lr = self.net_lr * schedule(self.steps_before / (train.epochs * self.steps))
        self.latent_lr = np.array([c.train.latent_lr for c in configs]) * factors * schedule(done / train.epochs)

        def order(epoch: int) -> Tensor:
            return torch.randperm(n, generator=derived_generator(train.seed, Purpose.ORDER, epoch)).to(data.device)

        def eps(epoch: int) -> Tensor:
            generator = derived_generator(train.seed, Purpose.NOISE, epoch)
            return standard_normal(n, configs[0].model.latent, generator=generator, device=data.device)

        self.order, self.eps = _per_member(self.epochs, order), _per_member(self.epochs, eps)
        ordered = pad(data.counts[self.order], (0, self.steps * self.batch_size - n))
        self.normaliser = (
            ordered.view(*ordered.shape[:-1], self.steps, self.batch_size).sum(-1).clamp_(min=1.0)
        )  # ([p,] steps)

    @cached_property
    def inverse_normaliser(self) -> Tensor:
        """1 / observed cells of each row's batch, ([p,] n, 1), in shuffled order."""
        inverse = self.normaliser.reciprocal().repeat_interleave(self.batch_size, dim=-1)
        return inverse[..., : self._data.n].unsqueeze(-1)

    def batches(self) -> Iterator[Batch]:
        """Yields the batches in order; the last may be smaller."""
        dropout, n = self._dropout(), self._data.n
        batch_values = self._data.features * self.batch_size * len(self.order.view(-1, n))
        size = max(1, _SHUFFLED_VALUES // batch_values) * self.batch_size
        for first in range(0, n, size):  # rows are shuffled for several batches at a time
            chosen = self.order[..., first : first + size]
            x, mask = self._data.of_rows(chosen)
            weight = mask * (2.0 * self.inverse_normaliser[..., first : first + size, :])
            for start in range(0, chosen.shape[-1], self.batch_size):
                index = (first + start) // self.batch_size
                rows = slice(first + start, min(first + start + self.batch_size, n))
                part = (..., slice(start, start + self.batch_size), slice(None))
                yield Batch(index, rows, x[part], mask[part], weight[part], self.normaliser[..., index], next(dropout))

    @cached_property
    def residual_norms(self) -> Tensor:
        """Memory for the norm of every batch's weighted residual, (p, steps)."""
        return torch.empty(len(self._configs), self.steps, device=self._data.device)

    @cached_property
    def weighted_errors(self) -> Tensor:
        """Memory for the first result of objective.noise_gradient of every batch, (p, steps)."""
        return torch.empty(len(self._configs), self.steps, device=self._data.device)

    def squared_error(self) -> Tensor:
        """Returns the sum of squared errors (p,), computed from the residual norms."""
        return (self.residual_norms * (0.5 * self.normaliser)).square_().sum(-1)

    def _dropout(self) -> Iterator[list[Tensor] | None]:
        """Yields the dropout factors of every batch: 0 where a unit is dropped, 1 / (1 - rate) elsewhere.

        Members share the uniform draws and compare them with their rates.
        """
        model, train = self._configs[0].model, self._configs[0].train
        rates = [config.model.dropout for config in self._configs]
        if model.layers == 0 or not any(rates):
            yield from repeat(None)
        device, n, layers = self._data.device, self._data.n, model.layers
        pinned = device.type == "cuda"  # memory, so that the copy does not wait for the device
        rate = torch.tensor(rates, device=device).view(-1, 1, 1)
        kept = 1.0 / (1.0 - rate)
        generators = {epoch: derived_generator(train.seed, Purpose.DROPOUT, epoch) for epoch in self.epochs}

        for start in range(0, n, self.batch_size):
            b = min(self.batch_size, n - start)

            def draw(epoch: int, b: int = b) -> Tensor:
                uniform = torch.rand(b, layers * model.hidden, generator=generators[epoch], pin_memory=pinned)
                return uniform.to(device, non_blocking=True)

            uniform = _per_member(self.epochs, draw)
            yield list(((uniform >= rate) * kept).chunk(layers, dim=-1))  # of (p, b, layers · hidden)

    def shuffled(self, values: Tensor) -> Tensor:
        """Returns values ([p,] n, k) of rows in the order of the batches."""
        return _reorder(values, self.order)

    def in_row_order(self, values: Tensor) -> Tensor:
        """Returns values ([p,] n, k) in the order of the batches in the order of the rows."""
        return _reorder(values, self._inverse)

    @cached_property
    def _inverse(self) -> Tensor:
        return self.order.argsort(-1)


def _per_member(epochs: Sequence[int], make: Callable[[int], Tensor]) -> Tensor:
    """Returns make(epoch) for each member's epoch, stacked; without the member axis if all epochs are equal."""
    made = {epoch: make(epoch) for epoch in dict.fromkeys(epochs)}
    return made[epochs[0]] if len(made) == 1 else torch.stack([made[epoch] for epoch in epochs])


def _reorder(values: Tensor, order: Tensor) -> Tensor:
    if order.dim() == 1:
        return values.index_select(-2, order)
    return values.gather(-2, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
