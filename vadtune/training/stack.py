"""A stack of population members: their weights, posteriors and moments in stacked tensors, and an epoch of training.

Shape comments: p members, n rows, b batch rows, d features, k latent dims, s posterior parameters, M network
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vadtune import native
from vadtune.models import Family, Networks
from vadtune.models.linear_em import NotPositiveDefinite, em_step
from vadtune.models.objective import kl_divergence, noise_gradient, posterior_gradients, reconstruction, sample
from vadtune.models.observation_noise import log_variance_backward
from vadtune.training import native_epoch
from vadtune.training.batches import Batch, Epoch
from vadtune.training.member import Member
from vadtune.training.optimiser import OPTIMISERS, ROW_OPTIMISERS, SCHEDULES
from vadtune.training.train_rows import TrainRows

# EM has converged below either threshold: the change of an iteration in units of the largest weight, or the change of
# the loss in units of kl_weight, that is in nats per observed cell. What still moves then (the noise of a feature
# without error, say) hardly affects held-out cells: digits changed by .0003 of .2 in 200 more iterations.
_CONVERGED, _CONVERGED_LOSS = 1e-3, 5e-5


class Stack:
    """A fixed sequence of members in stacked tensors.

    Args:
        data: The train rows.
        members: The members, in stacking order.
        family: The family that all of them train as.
        tensors: By name: weights (p, M), weight_moments (2, p, M), rows (p, n, s) with the rows' posterior parameters,
            and row_moments (2, p, n, s); updated in place.
    """

    def __init__(self, data: TrainRows, members: Sequence[Member], family: Family, tensors: dict[str, Tensor]) -> None:
        self._data, self.members, self.family = data, members, family
        self._flat, self._flat_moments = tensors["weights"], tensors["weight_moments"]
        self._rows, self._row_moments = tensors["rows"], tensors["row_moments"]
        self._grad, self._row_grad = torch.empty_like(self._flat), torch.empty_like(self._rows)
        configs = [member.config for member in members]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._flat.device).view(-1, 1, 1)

        self._kl_weight = column([config.train.kl_weight for config in configs])
        self._log_var = column([config.model.log_var for config in configs])
        name, decay = configs[0].train.optimiser, [config.train.weight_decay for config in configs]
        self._optimiser = OPTIMISERS[name](self._flat, self._grad, self._flat_moments, decay)
        self._row_optimiser = ROW_OPTIMISERS[name](self._rows, self._row_grad, self._row_moments)

    def train_epoch(self, members: slice) -> list[list[float] | None]:
        """Trains the members of a slice for one epoch, in place.

        Returns:
            For each member the sum of squared errors, the same in units of the observation noise plus the cost of its
            log variances, and the KL divergence in nats; None if it has converged.
        """
        indices = range(*members.indices(len(self.members)))
        if self.family.architecture.closed_form:
            return [self._em_step(index) for index in indices]
        group = self.members[members]
        configs, epochs = [member.config for member in group], [member.epoch for member in group]
        factors = [member.plateau.factor for member in group]
        schedule = SCHEDULES[configs[0].train.schedule]
        epoch = Epoch(self._data, configs, epochs, schedule, factors)
        same_batches = len(set(epochs)) == 1 and self._flat.is_cpu
        if same_batches and all(native.supports_training(config) for config in configs):
            return [self._train_native(index, epoch, position) for position, index in enumerate(indices)]
        train = self._train_amortised if self.family.amortised else self._train_free
        epoch_sums: list[list[float] | None] = train(members, epoch).tolist()  # waits for the device
        return epoch_sums

    def _em_step(self, index: int) -> list[float] | None:
        """Runs one EM iteration of a member unless it has converged.

        The change of the weights is stored in the first moments, and so is part of the state; it is set to 0 when the
        loss has converged.
        """
        member, flat, change = self.members[index], self._flat[index], self._flat_moments[0, index]
        if member.epoch > 0 and bool(change.abs().max() <= _CONVERGED * flat.abs().max()):
            return None
        networks, train = self.family.layers(self._flat), member.config.train
        ridge = train.weight_decay * self._data.cells / self._data.features
        decoder = self.family.linear_decoder(networks, index)
        try:
            step = em_step(decoder, self._data.values, self._data.mask, train.kl_weight, ridge)
        except NotPositiveDefinite:
            flat.fill_(torch.nan)
            return [torch.nan] * 3
        change.copy_(flat)
        self.family.set_linear_decoder(networks, index, step.decoder)
        torch.sub(flat, change, out=change)
        loss = (step.weighted_error + train.kl_weight * step.kl) / self._data.cells
        if abs(loss - member.metrics.get("train_loss", torch.inf)) < _CONVERGED_LOSS * train.kl_weight:
            change.zero_()
        self._rows[index] = step.means
        return [step.squared_error, step.weighted_error, step.kl]

    def _train_native(self, index: int, epoch: Epoch, position: int) -> list[float]:
        """Trains a member's decoder and free row posteriors by the compiled kernel."""
        weights = self._flat[index], self._grad[index], self._flat_moments[:, index]
        rows, config = (self._rows[index], self._row_moments[:, index]), self.members[index].config
        return list(native_epoch.train_epoch(self.family, config, weights, rows, self._data.values, epoch, position))

    def _train_free(self, members: slice, epoch: Epoch) -> Tensor:
        """Trains decoders and free row posteriors in PyTorch.

        An epoch visits every row once, so a row's posterior does not change before its batch, and its gradient is not
        needed before the next epoch: all rows are sampled, and all posteriors updated, at once.
        """
        posterior = self.family.posterior(self._rows[members], self._log_var[members])
        z, deviation = sample(posterior, epoch.eps)  # (p, n, k)
        z = epoch.shuffled(z)
        grad_z = torch.empty_like(z)
        networks, grads_out = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
        steps = self._optimiser.steps(members, epoch.steps_before, epoch.net_lr)
        for batch in epoch.batches():
            self._decode(members, networks, grads_out, epoch, batch, z[:, batch.rows], grad_z[:, batch.rows])
            next(steps)
        weight = self._kl_weight[members] * epoch.in_row_order(epoch.inverse_normaliser)
        learned = self.family.architecture.posterior == "learned"
        self._row_grad[members] = posterior_gradients(
            posterior, epoch.in_row_order(grad_z), deviation, weight, learned=learned
        )
        kl = kl_divergence(posterior).sum(1)
        next(self._row_optimiser.steps(members, np.array([epoch.epochs]), epoch.latent_lr[None]))
        return self._sums(epoch, kl)

    def _train_amortised(self, members: slice, epoch: Epoch) -> Tensor:
        """Trains encoders and decoders in PyTorch."""
        networks, grads_out = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
        eps = epoch.shuffled(epoch.eps)
        learned = self.family.architecture.posterior == "learned"
        kl = torch.zeros(len(self._flat[members]), device=self._flat.device)
        steps = self._optimiser.steps(members, epoch.steps_before, epoch.net_lr)
        for batch in epoch.batches():
            posterior_params, tape = self.family.encode(networks, batch.x, batch.mask)
            posterior = self.family.posterior(posterior_params, self._log_var[members])
            z, deviation = sample(posterior, eps[..., batch.rows, :])
            grad_z = self._decode(members, networks, grads_out, epoch, batch, z)
            kl += kl_divergence(posterior).sum(1)
            weight = self._kl_weight[members] * epoch.inverse_normaliser[..., batch.rows, :]
            grad = posterior_gradients(posterior, grad_z, deviation, weight, learned=learned)
            self.family.encode_backward(networks, tape, grad, grads_out)
            next(steps)
        return self._sums(epoch, kl)

    def _sums(self, epoch: Epoch, kl: Tensor) -> Tensor:
        """Returns the three sums of each member, (p, 3); see ``train_epoch``."""
        squared_error = epoch.squared_error()
        weighted = epoch.weighted_errors.sum(-1) if "noise" in self.family.networks else squared_error
        return torch.stack([squared_error, weighted, kl], dim=1)

    def _decode(
        self,
        members: slice,
        networks: Networks,
        grads_out: Networks,
        epoch: Epoch,
        batch: Batch,
        z: Tensor,
        grad_z: Tensor | bool = True,
    ) -> Tensor:
        """Decodes a batch, writes the gradients of decoder and observation noise, and records the errors in the epoch.

        Returns:
            The gradient with respect to z (p, b, k).
        """
        obs_log_var = self.family.obs_log_var(networks)
        residual, grad_z = reconstruction(
            self.family.networks["decoder"],
            networks["decoder"],
            z,
            batch.x,
            batch.weight,
            grads_out=grads_out["decoder"],
            grad_z=grad_z,
            dropout=batch.dropout,
            obs_log_var=obs_log_var,
        )
        torch.linalg.vector_norm(residual, dim=(1, 2), out=epoch.residual_norms[:, batch.number])
        if obs_log_var is not None:
            weighted, grad = noise_gradient(
                obs_log_var, residual, batch.weight, batch.normaliser, self._kl_weight[members]
            )
            epoch.weighted_errors[:, batch.number] = weighted
            log_variance_backward(networks["noise"], grad, grads_out["noise"])
        return grad_z
