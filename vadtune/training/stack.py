"""Members stacked: their weights, posteriors and moments side by side in memory, and an epoch of training of some.

Shape comments: p members, n rows, b batch rows, d features, k latent dimensions, s of a row, M network parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadtune.data import MaskedRows
from vadtune.models import Family, Networks
from vadtune.models.linear import NotSolved, iterate
from vadtune.models.networks import Workspace, side_by_side
from vadtune.models.noise import log_variance_backward
from vadtune.models.objective import draw, kl_divergence, noise_gradient, posterior_gradients
from vadtune.training import native_epoch as machine_code
from vadtune.training.batches import Batch, Epoch
from vadtune.training.cuda_graph import Passes, decoder_passes
from vadtune.training.member import Member
from vadtune.training.optimiser import OPTIMISERS, ROW_OPTIMISERS, SCHEDULES

# Below either, a solved model has settled: the change of an iteration, in units of the greatest weight; what the loss
# changes, in units of kl_weight, which makes it nats for each observed cell. Of what still moves then (the noise of a
# column that is all but solved, say) the held-out cells know nothing: digits moved by .0003 of .2 in 200 iterations.
_SETTLED, _SETTLED_LOSS = 1e-3, 5e-5


class TrainRows:
    """The rows that all members train on, on their device.

    Args:
        train: The rows; copied.
        device: Where they are to lie.

    Attributes:
        x: (n, d), with 0 in place of missing cells.
        mask: (n, d) float, 1 = observed.
        counts: Observed cells of each row (n,).
        cells: Number of observed cells.
    """

    def __init__(self, train: MaskedRows, device: torch.device) -> None:
        mask = torch.tensor(train.mask)
        self.x = torch.tensor(train.x).masked_fill_(~mask, 0.0).to(device)
        self.mask = mask.float().to(device)
        self.counts = self.mask.sum(1)
        self.cells = float(self.counts.sum())

    @cached_property
    def x_nan(self) -> Tensor:
        """The rows (n, d), NaN where missing."""
        return self.x.masked_fill(self.mask == 0, torch.nan)


class _Sums(NamedTuple):
    """Of an epoch, (p,) each."""

    squared_error: Tensor
    weighted: Tensor  # the squared error in units of the features' noise, and what its log variances cost
    kl: Tensor  # nats


class Stack:
    """Members that train side by side. Their number and order are fixed.

    Args:
        data: The train rows.
        members: In the order they are stacked in.
        family: The model they train as.
        tensors: Weights (p, M), their moments (2, p, M), posterior_params of the rows (p, n, s) and their moments
            (2, p, n, s); updated in place.
        log_var: The fixed log variance of each member's posteriors (p, 1, 1), or of its latents (p, 1, k).
        activations: The name of each member's.
        padded: Whether members may be narrower than the family.
    """

    def __init__(
        self,
        data: TrainRows,
        members: Sequence[Member],
        family: Family,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        log_var: Tensor,
        activations: Sequence[str],
        *,
        padded: bool,
    ) -> None:
        self._data, self.members, self.family, self._padded = data, members, family, padded
        self._flat, self._flat_moments, self._rows, self._row_moments = tensors
        self._grad, self._row_grad = torch.empty_like(self._flat), torch.empty_like(self._rows)
        self._log_var, self._activations = log_var, activations
        configs = [member.config for member in members]
        kl_weights = [config.train.kl_weight for config in configs]
        self._kl_weight = torch.tensor(kl_weights, dtype=torch.float32, device=self._flat.device).view(-1, 1, 1)
        name, decay = configs[0].train.optimiser, [config.train.weight_decay for config in configs]
        self._optimiser = OPTIMISERS[name](self._flat, self._grad, self._flat_moments, decay)
        self._row_optimiser = ROW_OPTIMISERS[name](self._rows, self._row_grad, self._row_moments)
        self._workspaces: dict[tuple[int, int], Workspace] = {}
        self._passes: dict[tuple[int, int, int], Passes] = {}

    def train_epoch(self, members: slice) -> list[list[float] | None]:
        """Trains some members an epoch further, and changes nothing but memory given to it.

        Returns:
            Of each member the sum of squared errors, the same in units of the features' noise with what its log
            variances cost, and the KL divergence in nats; None if it has settled.
        """
        if self.family.architecture.closed_form:
            return [self._solve(index) for index in range(*members.indices(len(self.members)))]
        group = self.members[members]
        configs, epochs = [member.config for member in group], [member.epoch for member in group]
        factors = [member.plateau.factor for member in group]
        schedule = SCHEDULES[configs[0].train.schedule]
        widths = self.family.architecture.latent, self.family.architecture.hidden
        epoch = Epoch(self._data.x, self._data.mask, self._data.counts, configs, epochs, schedule, factors, widths)
        alike = not self._padded and len(set(epochs)) == 1 and self._flat.is_cpu
        if alike and all(machine_code.supports_training(config) for config in configs):
            return self._train_by_machine_code(members, epoch)
        train = self._train_amortised if self.family.amortised else self._train_free
        told: list[list[float] | None] = torch.stack(train(members, epoch)).T.tolist()  # the one wait for the device
        return told

    def _solve(self, index: int) -> list[float] | None:
        """Takes one member an iteration of linear.py further, unless the last one changed next to nothing.

        What it changed is kept where an optimiser would keep its first moment, and so is part of the state; nothing is
        kept there when the loss has settled.
        """
        member, flat, change = self.members[index], self._flat[index], self._flat_moments[0, index]
        if member.epoch > 0 and bool(change.abs().max() <= _SETTLED * flat.abs().max()):
            return None
        networks, train = self.family.layers(self._flat), member.config.train
        ridge = train.weight_decay * self._data.cells / self._data.x.shape[1]
        try:
            done = iterate(self.family.linear(networks, index), self._data.x, self._data.mask, train.kl_weight, ridge)
        except NotSolved:
            flat.fill_(torch.nan)
            return [torch.nan] * 3
        change.copy_(flat)
        self.family.set_linear(networks, index, done.decoder)
        torch.sub(flat, change, out=change)
        loss = (done.weighted + train.kl_weight * done.kl) / self._data.cells
        if abs(loss - member.metrics.get("train_loss", torch.inf)) < _SETTLED_LOSS * train.kl_weight:
            change.zero_()
        self._rows[index] = done.means
        return [done.squared_error, done.weighted, done.kl]

    def _train_by_machine_code(self, members: slice, epoch: Epoch) -> list[list[float] | None]:
        """Trains decoders and free row posteriors by machine code, one member after the other."""
        indices = range(*members.indices(len(self.members)))
        return [
            list(
                machine_code.train_epoch(
                    self.family,
                    self.members[i].config,
                    (self._flat[i], self._grad[i], self._flat_moments[:, i]),
                    (self._rows[i], self._row_moments[:, i]),
                    self._data.x_nan,
                    epoch,
                    at,
                )
            )
            for at, i in enumerate(indices)
        ]

    def _train_free(self, members: slice, epoch: Epoch) -> _Sums:
        """Trains decoders and free row posteriors.

        An epoch visits every row once, so a row's posterior does not change before its batch, and what its batch tells
        about it is not needed before the next epoch: draws are made, and posteriors updated, for all rows at once.
        """
        posterior = self.family.posterior(self._rows[members], self._log_var[members])
        z, deviation = draw(posterior, epoch.noise)  # (p, n, k)
        z = epoch.shuffled(z)
        grad_z = torch.empty_like(z)
        networks, into = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
        steps = self._optimiser.steps(members, epoch.taken, epoch.net_lr)
        for batch in epoch.batches():
            self._decode(members, networks, into, epoch, batch, z[:, batch.rows], grad_z[:, batch.rows])
            next(steps)
        weight = self._kl_weight[members] * epoch.in_row_order(epoch.inverse_normaliser)
        learned = self.family.architecture.posterior == "learned"
        self._row_grad[members] = posterior_gradients(
            posterior, epoch.in_row_order(grad_z), deviation, weight, learned=learned
        )
        kl = kl_divergence(posterior).sum(1)
        next(self._row_optimiser.steps(members, np.array([epoch.epochs]), epoch.latent_lr[None]))
        return self._sums(epoch, kl)

    def _train_amortised(self, members: slice, epoch: Epoch) -> _Sums:
        """Trains encoders and decoders."""
        networks, into = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
        noise = epoch.shuffled(epoch.noise)
        learned = self.family.architecture.posterior == "learned"
        kl = torch.zeros(len(self._flat[members]), device=self._flat.device)
        steps = self._optimiser.steps(members, epoch.taken, epoch.net_lr)
        for batch in epoch.batches():
            posterior_params, tape = self.family.encode(networks, batch.x, batch.mask)
            posterior = self.family.posterior(posterior_params, self._log_var[members])
            z, deviation = draw(posterior, noise[..., batch.rows, :])
            grad_z = self._decode(members, networks, into, epoch, batch, z)
            kl += kl_divergence(posterior).sum(1)
            weight = self._kl_weight[members] * epoch.inverse_normaliser[..., batch.rows, :]
            grad = posterior_gradients(posterior, grad_z, deviation, weight, learned=learned)
            self.family.encode_backward(networks, tape, grad, into)
            next(steps)
        return self._sums(epoch, kl)

    def _sums(self, epoch: Epoch, kl: Tensor) -> _Sums:
        squared_error = epoch.squared_error()
        noisy = "noise" in self.family.networks
        return _Sums(squared_error, epoch.noisy_errors.sum(-1) if noisy else squared_error, kl)

    def _decode(
        self,
        members: slice,
        networks: Networks,
        into: Networks,
        epoch: Epoch,
        batch: Batch,
        z: Tensor,
        grad_z: Tensor | bool = True,
    ) -> Tensor:
        """Decodes a batch, writes the gradients of decoder and noise, and lets the epoch know the errors.

        Returns:
            The gradient with respect to z (p, b, k).
        """
        log_noise = self.family.log_noise(networks)
        passes = self._passes_of(members, batch.x.shape[-2], epoch)
        residual, carried = passes(z, batch.x, batch.weight, grad_z=grad_z, dropout=batch.dropout, log_noise=log_noise)
        torch.linalg.vector_norm(residual, dim=(1, 2), out=epoch.residual_norms[:, batch.number])
        if log_noise is not None:
            weighted, grad = noise_gradient(
                log_noise, residual, batch.weight, batch.normaliser, self._kl_weight[members]
            )
            epoch.noisy_errors[:, batch.number] = weighted
            log_variance_backward(networks["noise"], grad, into["noise"])
        return carried

    def _passes_of(self, members: slice, b: int, epoch: Epoch) -> Passes:
        """Returns the decoder's passes over some members and batches of b rows."""
        p = members.stop - members.start
        if (members.start, p, b) not in self._passes:
            activation = side_by_side(self._activations[members])
            decoder = replace(self.family.networks["decoder"], activation=activation)
            if (p, b) not in self._workspaces:
                self._workspaces[p, b] = decoder.workspace(p, b, self._flat)
            layers, into = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
            self._passes[members.start, p, b] = decoder_passes(
                decoder,
                layers["decoder"],
                into["decoder"],
                self._workspaces[p, b],
                how=self.members[0].config.train.compile,
                steps=epoch.steps_left,
            )
        return self._passes[members.start, p, b]
